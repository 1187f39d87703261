"""Temporary factors: low-rank changes of linear layers, one set for each conversation, stacked and computed together.

A conversation has a slot. All its factors are one row of one tensor, so that writing, decay, roll-back and the
hand-over of a slot are operations on rows, and no conversation is looped over. They are float32 whatever the model is.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import Any

import torch
from torch.nn.functional import linear

from ..attention import Layout

# Of AdamW, as torch has them.
BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True, slots=True)
class State:
    """What some conversations remember, stacked: shapes (slots, parameters), (moments, slots, parameters), (slots,).

    AdamW has two moments, plain gradient descent none.
    """

    values: torch.Tensor
    moments: torch.Tensor
    steps: torch.Tensor


class TemporaryFactors:
    """Factors of `slots` conversations over some linear layers: each adds `scale` * B A x to what its layer returns.

    A is drawn as in LoRA (arXiv 2106.09685) and stays as it is, as in LoRA-FA (arXiv 2308.03303): all conversations
    share it, so that A x is one product. B is what a conversation writes, and starts at 0: a fresh memory changes
    nothing.
    """

    def __init__(
        self, layers: Mapping[str, Any], *, slots: int, rank: int, scale: float, adamw: bool, seed: int = 0
    ) -> None:
        self.layers, self.rank, self.scale, self.adamw = layers, rank, scale, adamw
        device = next(iter(layers.values())).weight.device
        generator = torch.Generator().manual_seed(seed)
        self.a: dict[str, torch.Tensor] = {}
        for name, layer in layers.items():
            bound = 1 / sqrt(layer.in_features)  # as PEFT starts A: Kaiming's uniform distribution with a = sqrt(5)
            drawn = torch.empty(rank, layer.in_features).uniform_(-bound, bound, generator=generator)
            self.a[name] = drawn.to(device)
        parameters = rank * sum(layer.out_features for layer in layers.values())
        self._state = State(
            torch.zeros(slots, parameters, device=device),
            torch.zeros(2 if adamw else 0, slots, parameters, device=device),
            torch.zeros(slots, device=device),
        )
        self._used: tuple[dict[str, torch.Tensor], Callable[[int], _Rows]] | None = None

    @property
    def device(self) -> torch.device:
        return self._state.values.device

    @property
    def parameters(self) -> int:
        """How many numbers one conversation writes."""
        return self._state.values.shape[1]

    def fingerprint(self) -> str:
        """Return the SHA-256 of all A."""
        found = hashlib.sha256()
        for a in self.a.values():
            found.update(a.cpu().numpy().tobytes())
        return found.hexdigest()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Have the layers add what the factors give, wherever `using` says whose; nothing of the model is changed."""

        def adding(name: str) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
            return lambda layer, inputs, output: self._add(name, inputs[0], output)

        hooks = [layer.register_forward_hook(adding(name)) for name, layer in self.layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def using(self, values: torch.Tensor, layout: Layout) -> Iterator[torch.Tensor]:
        """Compute a row in which the parts of some conversations stand one after the other, as many of each.

        `values` are those of their states, shape (conversations, parameters). Yields a leaf that gradients gather in.
        """
        each = len(layout.parts) // len(values)

        @cache
        def rows(tokens: int) -> _Rows:
            counts = layout.counts(tokens)
            return _Rows([sum(counts[start : start + each]) for start in range(0, len(counts), each)], self.device)

        leaf = values.detach().requires_grad_()
        self._used = (self._cut(leaf), rows)
        try:
            yield leaf
        finally:
            self._used = None

    def step(self, state: State, gradients: torch.Tensor, rates: torch.Tensor) -> State:
        """Return the state after one step of AdamW without weight decay, or of plain gradient descent.

        `gradients` has shape (conversations, parameters), `rates` (conversations,).
        """
        steps = state.steps + 1
        if not self.adamw:
            return State(torch.addcmul(state.values, gradients, rates[:, None], value=-1), state.moments, steps)
        first = state.moments[0].lerp(gradients, 1 - BETAS[0])
        second = state.moments[1].lerp(gradients.square(), 1 - BETAS[1])
        unbias_first, unbias_second = (1 - torch.pow(beta, steps)[:, None] for beta in BETAS)
        change = (first / unbias_first) / ((second / unbias_second).sqrt() + EPSILON)
        return State(state.values - rates[:, None] * change, torch.stack([first, second]), steps)

    def look(self, slots: Sequence[int]) -> State:
        """Return what some slots remember now; only until the next `put`, as it may be no copy."""
        rows = self._rows(slots)
        return State(self._state.values[rows], self._state.moments[:, rows], self._state.steps[rows])

    def take(self, slots: Sequence[int]) -> State:
        """Return a copy of what some slots remember."""
        seen = self.look(slots)
        return State(seen.values.clone(), seen.moments.clone(), seen.steps.clone())

    def put(self, slots: Sequence[int], state: State | None) -> None:
        """Have some slots remember what `take` returned, or with None nothing."""
        rows = self._rows(slots)
        self._state.values[rows] = 0.0 if state is None else state.values.to(self.device)
        self._state.moments[:, rows] = 0.0 if state is None else state.moments.to(self.device)
        self._state.steps[rows] = 0.0 if state is None else state.steps.to(self.device)

    def matrices(self, slot: int) -> Iterator[tuple[Any, torch.Tensor, torch.Tensor]]:
        """Yield every linear layer with A, (rank, inputs), and B, (outputs, rank), of a slot."""
        for name, b in self._cut(self._state.values[slot : slot + 1]).items():
            yield self.layers[name], self.a[name], b[0]

    def _rows(self, slots: Sequence[int]) -> Any:
        """Return an index of some slots that copies nothing where they are all."""
        return slice(None) if list(slots) == list(range(len(self._state.values))) else list(slots)

    def _cut(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return B of every layer, shape (conversations, outputs, rank)."""
        sizes = [self.rank * layer.out_features for layer in self.layers.values()]
        pieces = values.split(sizes, dim=1)  # at once: the gradient of each slice would be as large as the whole
        return {name: b.view(len(values), -1, self.rank) for name, b in zip(self.layers, pieces, strict=True)}

    def _add(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self._used is None:
            return output
        b, rows_of = self._used
        rows = rows_of(inputs.shape[1])
        inner = rows.cut(self.scale * linear(inputs[0].float(), self.a[name]))
        return output + rows.join(torch.bmm(inner, b[name].transpose(1, 2))).to(output.dtype)


class _Rows:
    """Tokens that stand one after the other, some of each conversation: cut into a row for each, and joined again."""

    def __init__(self, lengths: Sequence[int], device: Any) -> None:
        self._count, self._longest = len(lengths), max(lengths)
        places = [row * self._longest + place for row, length in enumerate(lengths) for place in range(length)]
        self._places = None if len(places) == self._count * self._longest else torch.tensor(places, device=device)

    def cut(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return shape (conversations, longest, width) for (tokens, width)."""
        if self._places is not None:
            padded = tokens.new_zeros(self._count * self._longest, tokens.shape[1])
            tokens = padded.index_copy(0, self._places, tokens)
        return tokens.view(self._count, self._longest, -1)

    def join(self, rows: torch.Tensor) -> torch.Tensor:
        flat = rows.flatten(0, 1)
        return flat if self._places is None else flat.index_select(0, self._places)
