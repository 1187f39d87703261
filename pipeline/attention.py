"""The packed attention: parts of prompt trees side by side in one row, where each token sees its own stretches alone.

Every model of transformers calls its attention through a registry, and this one is registered there: nothing is
padded, and nothing of a model's code is touched. A row is computed part by part, and a part in tiles with SDPA and
dense masks; on CUDA as a whole with FlexAttention and a block mask. With a cache, what is known of a trunk is not
computed again. Of the last layer all but keys and values is computed only where logits are asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from ..data.errors import DataError
from ..prompts.packing import Part, lay_out, unpack

PACKED = "erckit_packed"
# Tokens of a part whose attention is computed at once: what none of them sees costs nothing.
TILE = 128
# How far packed logits may be from unrolled ones, in standard deviations of the logits: rounding, by dtype.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
COARSE_TOLERANCE = 0.2


class TrunkCache:
    """The keys and values of one trunk, layer by layer; it only grows. `known` is how many tokens count."""

    def __init__(self) -> None:
        self.known = 0
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put what was computed behind what is known, and return all of it, shape (1, heads, tokens, dimension).

        Of what was put only the trunk is to be counted as known afterwards; the next turn takes the place of the rest.
        """
        stop = self.known + key.shape[2]
        stores = self._layers.get(layer)
        if stores is None or stores[0].shape[2] < stop:
            # Room for twice as much: copying stays in proportion to what is written.
            fresh = tuple(new.new_empty(*new.shape[:2], 2 * stop, new.shape[3]) for new in (key, value))
            for store, old in zip(fresh, stores or (), strict=False):
                store[:, :, : self.known] = old[:, :, : self.known]
            stores = self._layers[layer] = (fresh[0], fresh[1])
        for store, new in zip(stores, (key, value), strict=True):
            store[:, :, self.known : stop] = new
        return stores[0][:, :, :stop], stores[1][:, :, :stop]


class Layout:
    """Where the parts of one row lie, and what their tokens see. With `caches`, one for each part, None for none."""

    def __init__(self, parts: Sequence[Part], device: Any, caches: Sequence[TrunkCache | None] = ()) -> None:
        self.parts, self.device = parts, device
        self.caches = caches or [None] * len(parts)
        self.ids = torch.cat([torch.from_numpy(part.ids) for part in parts]).to(device)
        self.positions = torch.cat([torch.from_numpy(part.positions) for part in parts]).to(device)
        self.lengths = [len(part.ids) for part in parts]
        self.starts = [sum(self.lengths[:place]) for place in range(len(parts))]
        self.asked: torch.Tensor | None = None
        self._asked_of = self.lengths
        self._kept: Any = None  # keys and values of the last layer, None before, ... while they are computed
        self._masks: dict[Any, Any] = {}

    def ask(self, places: Sequence[int]) -> torch.Tensor:
        """Have the last layer give only what is asked for. Returns where each place is found in that, (places,)."""
        asked, found = torch.tensor(sorted(set(places)), device=self.device), torch.tensor(places, device=self.device)
        edges = torch.tensor([*self.starts, len(self.ids)], device=self.device)
        self.asked, self._asked_of = asked, torch.searchsorted(asked, edges).diff().tolist()
        return torch.searchsorted(asked, found)

    def counts(self, tokens: int) -> list[int]:
        """Return how many of so many tokens are each part's: of all, or of those that the last layer is asked for."""
        return self.lengths if tokens == len(self.ids) else self._asked_of

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Have the next call of attention keep the keys and values for the one after it, and go no further."""
        self._kept = ...
        with suppress(_Kept):
            yield

    def attend(self, module: Any, query: Any, key: Any, value: Any, scaling: Any, window: int | None) -> torch.Tensor:
        """Return what attention gives, shape (1, tokens, heads, dimension)."""
        if self._kept is ...:
            self._kept = key, value
            raise _Kept
        (key, value), self._kept = self._kept or (key, value), None
        if query.device.type == "cuda" and not any(self.caches):
            return self._attend_flexibly(module, query, key, value, scaling, window)
        on_cpu, differentiated = query.device.type == "cpu", torch.is_grad_enabled()
        # The fused kernel of the CPU takes 2.5 times as long as plain products where bfloat16 needs gradients.
        attend = _attend_plainly if on_cpu and differentiated else _attend_fused
        tile = TILE if on_cpu and not differentiated else len(self.ids)  # elsewhere more, smaller products gain nothing
        pieces = []
        queries = query.split(self.counts(query.shape[2]), dim=2)
        columns = [tensor.split(self.lengths, dim=2) for tensor in (key, value)]
        tiles_of = self._tiles(window, query.dtype, tile, query.shape[2])
        for q, k, v, cache, tiles in zip(queries, *columns, self.caches, tiles_of, strict=True):
            if cache is not None:
                k, v = cache.extend(module.layer_idx, k, v)
            for rows, mask, stretches in zip(q.split(tile, dim=2), *tiles, strict=True):
                keys, values = (_take(tensor, stretches) for tensor in (k, v))
                pieces.append(attend(rows, keys, values, mask, scaling))
        return torch.cat(pieces, dim=2).transpose(1, 2)

    def _rows(self, tokens: int) -> torch.Tensor:
        """Return the places of the tokens that attend, all or those asked for."""
        if self.asked is None or tokens == len(self.ids):
            return torch.arange(len(self.ids), device=self.device)
        return self.asked

    def _tiles(
        self, window: int | None, dtype: torch.dtype, tile: int, tokens: int
    ) -> list[tuple[list[torch.Tensor], list[list[slice]]]]:
        """Return for each part the masks of its tokens, so many at a time, and the stretches of keys that they see."""
        if (window, dtype, tile, tokens) not in self._masks:
            tiles = self._masks[window, dtype, tile, tokens] = []
            places = self._rows(tokens).split(self.counts(tokens))
            for part, start, rows_of in zip(self.parts, self.starts, places, strict=True):
                mask = self._dense_mask(part, window, dtype)[rows_of - start]
                stretches = [_find_stretches(rows) for rows in mask.split(tile)]
                masks = [
                    torch.cat([rows[:, stretch] for stretch in found], dim=1)
                    for rows, found in zip(mask.split(tile), stretches, strict=True)
                ]
                tiles.append((masks, stretches))
        return self._masks[window, dtype, tile, tokens]

    def _dense_mask(self, part: Part, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        seen = torch.from_numpy(part.seen).to(self.device)
        positions = torch.from_numpy(part.positions).to(self.device)
        keys = torch.arange(part.known + len(positions), device=self.device)
        visible = _in_stretches(keys, [bound.unsqueeze(1) for bound in seen.unbind(1)])
        if window is not None:
            key_positions = torch.cat([keys[: part.known], positions])
            visible &= key_positions > (positions.unsqueeze(1) - window)
        return torch.zeros(visible.shape, dtype=dtype, device=self.device).masked_fill_(~visible, float("-inf"))

    def _attend_flexibly(
        self, module: Any, query: Any, key: Any, value: Any, scaling: Any, window: int | None
    ) -> torch.Tensor:
        from transformers.integrations.flex_attention import flex_attention_forward

        place = window, query.shape[2]
        if place not in self._masks:
            self._masks[place] = self._block_mask(window, self._rows(query.shape[2]))
        return flex_attention_forward(module, query, key, value, self._masks[place], scaling=scaling)[0]

    def _block_mask(self, window: int | None, rows: torch.Tensor) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        shifted = [torch.from_numpy(part.seen + start) for part, start in zip(self.parts, self.starts, strict=True)]
        stretches = torch.cat(shifted).to(self.device).unbind(1)

        def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
            row = rows[query]
            inside = _in_stretches(key, [bound[row] for bound in stretches])
            near = self.positions[key] > self.positions[row] - window if window is not None else True
            return inside & near

        return create_block_mask(visible, None, None, len(rows), len(self.ids), device=self.device)


class _Kept(Exception):
    """Keys and values are kept; the rest of the layer is not computed."""


def _attend_fused(query: Any, key: Any, value: Any, mask: torch.Tensor, scaling: float | None) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=grouped)


def _attend_plainly(query: Any, key: Any, value: Any, mask: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Attention written out; the query heads that share a key head are rows of one product."""
    _, heads, _, dimension = query.shape
    groups = key.shape[1]
    rows = query.reshape(groups, -1, dimension)
    masks = mask.repeat(heads // groups, 1).expand(groups, -1, -1)
    scale = dimension**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(masks, rows, key[0].transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(dim=-1), value[0]).reshape(query.shape)


def _find_stretches(mask: torch.Tensor) -> list[slice]:
    """Return the stretches of columns in which some row of a mask is not minus infinity."""
    seen = (mask > float("-inf")).any(dim=0).int()
    edges = torch.diff(seen, prepend=seen.new_zeros(1), append=seen.new_zeros(1)).nonzero().flatten().tolist()
    return [slice(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _take(keys: torch.Tensor, stretches: Sequence[slice]) -> torch.Tensor:
    """Return keys or values, shape (1, heads, tokens, dimension), of some stretches of tokens."""
    taken = [keys[:, :, stretch] for stretch in stretches]
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim=2)


def _in_stretches(key: Any, bounds: Sequence[Any]) -> Any:
    """Whether a key lies in one of the three stretches, by their beginnings and ends in turn."""
    a, b, c, d, e, f = bounds
    return ((key >= a) & (key < b)) | ((key >= c) & (key < d)) | ((key >= e) & (key < f))


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    layout: Layout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What a model calls in place of its own attention; shapes (1, heads, tokens, dimension)."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise DataError(
                f"the model's attention uses {name}, which packed prompts do not support. Use another model."
            )
    return layout.attend(module, query, key, value, scaling, sliding_window), None


def packed_logits(model: Any, layout: Layout, places: Sequence[int]) -> torch.Tensor:
    """Return the logits at some places of a row and nowhere else, shape (places, vocabulary)."""
    # A layer that is computed a second time for its gradients does not go through its hooks again.
    again = model.training and getattr(model, "module", model).is_gradient_checkpointing  # of several processes, one
    return model(
        input_ids=layout.ids.unsqueeze(0),
        position_ids=layout.positions.unsqueeze(0),
        logits_to_keep=torch.tensor(places, device=layout.device) if again else layout.ask(places),
        use_cache=False,
        layout=layout,
    ).logits[0]


def _compute_where_asked(layer: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Before the last layer: compute its keys and values everywhere, and have it compute the rest where it is asked.

    What its other tokens would give goes nowhere. A hook, and no other `forward`, because those survive no copy.
    """
    layout = options.get("layout")
    if layout is None or layout.asked is None:
        return None
    with layout.keeping():
        layer.forward(*inputs, **options)

    def pick(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(pick, value))
        everywhere = isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[1] == len(layout.ids)
        return value.index_select(1, layout.asked) if everywhere else value

    return tuple(map(pick, inputs)), {name: pick(value) for name, value in options.items()}


def find_layers(model: Any) -> Sequence[Any]:
    """Return the transformer layers of a model in order. Raises DataError where it has no one list of them."""
    count = model.config.get_text_config().num_hidden_layers
    found = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        raise _not_packable(model, f"it has {len(found)} lists of {count} layers")
    return list(found[0])


def attend_packed(model: Any) -> None:
    """Have a model take packed rows (`packed_logits`)."""
    model.set_attn_implementation(PACKED)
    last = find_layers(model)[-1]
    if _compute_where_asked not in last._forward_pre_hooks.values():
        last.register_forward_pre_hook(_compute_where_asked, with_kwargs=True)


def use_packed_attention(model: Any) -> None:
    """Have a model compute its attention packed, once it is shown that this changes no answer.

    Raises DataError where it would, or where the model does not take its attention from the registry.
    """
    generator = np.random.default_rng(0)
    sizes, vocabulary = (12, 3, 2, 4), model.get_input_embeddings().num_embeddings
    trunk, *branches = (generator.integers(vocabulary, size=size) for size in sizes)
    part = lay_out(trunk, [(after, ids.tolist(), []) for after, ids in zip((4, 9, 12), branches, strict=True)])
    training = model.training
    model.eval()
    with torch.inference_mode():
        prompts = [torch.tensor([unpack(part, branch)], device=model.device) for branch in range(len(branches))]
        expected = torch.cat([model(prompt, use_cache=False).logits[:, -1] for prompt in prompts])
        attend_packed(model)
        try:
            found = packed_logits(model, Layout([part], model.device), [decided[()] for decided in part.asked])
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise _not_packable(model, f"it stops with {type(error).__name__}: {error}") from error
    model.train(training)
    apart = ((found.double() - expected.double()).abs().max() / expected.double().std()).item()
    if getattr(model.config, "attention_chunk_size", None) or not apart < TOLERANCE.get(found.dtype, COARSE_TOLERANCE):
        raise _not_packable(model, f"logits differ by {apart:.2g} standard deviations from those of unrolled prompts")


def _not_packable(model: Any, reason: str) -> DataError:
    return DataError(
        f"model {model.config.name_or_path!r} ({type(model).__name__}) cannot take packed prompts: {reason}. Expected "
        "a causal transformer with attention from the registry of transformers, such as Qwen, Llama, Phi-3 or Mistral."
    )


AttentionInterface.register(PACKED, packed_attention)
