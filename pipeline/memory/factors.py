"""Temporary factors: low-rank changes of linear layers, one set for each conversation, stacked and computed together.

A conversation has a slot. All factors of a slot are one row of one tensor, so that writing, decay, roll-back and the
hand-over of a slot are operations on rows, and no conversation is looped over. They are float32 whatever the model is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import torch

# Of AdamW, as torch has them.
BETAS, EPSILON = (0.9, 0.999), 1e-8

# Tokens of one conversation that are multiplied with its factors together.
BLOCK = 32


class Shape(NamedTuple):
    """Where the factors A, (rank, inputs), and B, (outputs, rank), of one linear layer lie in a row."""

    inputs: int
    outputs: int
    start: int
    middle: int
    stop: int


@dataclass(frozen=True, slots=True)
class State:
    """What some conversations remember, stacked: shapes (slots, parameters), (2, slots, parameters) and (slots,)."""

    values: torch.Tensor
    moments: torch.Tensor
    steps: torch.Tensor


class TemporaryFactors:
    """Factors of `slots` conversations over some linear layers: each adds `scale` * B A x to what its layer returns.

    A starts as in LoRA (arXiv 2106.09685), the same for every conversation, and B at 0: a fresh memory changes
    nothing. `values` has shape (slots, parameters), `moments` (2, slots, parameters), `steps` (slots,).
    """

    def __init__(self, layers: Mapping[str, Any], *, slots: int, rank: int, scale: float, seed: int = 0) -> None:
        self.rank, self.scale, self._layers = rank, scale, layers
        self.shapes: dict[str, Shape] = {}
        stop = 0
        for name, layer in layers.items():
            start, middle = stop, stop + rank * layer.in_features
            stop = middle + rank * layer.out_features
            self.shapes[name] = Shape(layer.in_features, layer.out_features, start, middle, stop)
        generator = torch.Generator().manual_seed(seed)
        fresh, is_b = torch.zeros(stop), torch.zeros(stop, dtype=torch.bool)
        for shape in self.shapes.values():
            bound = 1 / sqrt(shape.inputs)  # as PEFT starts A: Kaiming's uniform distribution with a = sqrt(5)
            fresh[shape.start : shape.middle].uniform_(-bound, bound, generator=generator)
            is_b[shape.middle : shape.stop] = True
        device = next(iter(layers.values())).weight.device
        self.fresh, self.is_b = fresh.to(device), is_b.to(device)
        self.values = self.fresh.repeat(slots, 1)
        self.moments = torch.zeros(2, slots, stop, device=device)
        self.steps = torch.zeros(slots, device=device)
        self._used: tuple[dict[Shape, tuple[torch.Tensor, torch.Tensor]], _Blocks] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Have the layers add what the factors give, wherever `using` says whose; nothing of the model is changed."""

        def adding(shape: Shape) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
            return lambda layer, inputs, output: self._add(shape, inputs[0], output)

        hooks = [layer.register_forward_hook(adding(shape)) for layer, shape in self.modules()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def using(self, slots: Sequence[int], lengths: Sequence[int]) -> Iterator[torch.Tensor]:
        """Compute a row in which the tokens of some slots stand one after the other, so many of each.

        Yields the slots' factors, shape (slots, parameters), a leaf that gradients gather in.
        """
        values = self.values[self._rows(slots)].detach().requires_grad_()
        self._used = (self._cut(values), _Blocks(lengths, self.values.device))
        try:
            yield values
        finally:
            self._used = None

    def step(self, slots: Sequence[int], gradients: torch.Tensor, *, rates: torch.Tensor, adamw: bool) -> torch.Tensor:
        """Write: one step of AdamW without weight decay, or of plain gradient descent, on the factors of some slots.

        `gradients` has shape (slots, parameters), `rates` (slots,). Returns by how much the factors went down.
        """
        rows = self._rows(slots)
        self.steps[rows] += 1
        if not adamw:
            return self._lower(rows, rates[:, None] * gradients)
        first = self.moments[0, rows].lerp(gradients, 1 - BETAS[0])
        second = self.moments[1, rows].lerp(gradients.square(), 1 - BETAS[1])
        self.moments[0, rows], self.moments[1, rows] = first, second
        unbias_first, unbias_second = (1 - torch.pow(beta, self.steps[rows])[:, None] for beta in BETAS)
        change = (first / unbias_first) / ((second / unbias_second).sqrt() + EPSILON)
        return self._lower(rows, rates[:, None] * change)

    def decay(self, slots: Sequence[int], share: float) -> None:
        """Draw B, and with it all that is remembered, towards 0."""
        self.values[list(slots)] *= torch.where(self.is_b, 1 - share, 1.0)

    def sizes(self, slots: Sequence[int]) -> torch.Tensor:
        """Return the root mean square of the entries of all B together, shape (slots,)."""
        return ((self.values[self._rows(slots)].square() @ self.is_b.float()) / self.is_b.sum()).sqrt()

    def take(self, slots: Sequence[int]) -> State:
        """Return a copy of what some slots remember, stacked as in `values`, `moments` and `steps`."""
        rows = list(slots)
        return State(self.values[rows], self.moments[:, rows], self.steps[rows])

    def put(self, slots: Sequence[int], state: State | None) -> None:
        """Have some slots remember what `take` returned, or with None nothing."""
        rows, device = list(slots), self.values.device
        self.values[rows] = self.fresh if state is None else state.values.to(device)
        self.moments[:, rows] = 0.0 if state is None else state.moments.to(device)
        self.steps[rows] = 0.0 if state is None else state.steps.to(device)

    def modules(self) -> list[tuple[Any, Shape]]:
        """Return the linear layers, each with where its factors lie."""
        return [(layer, self.shapes[name]) for name, layer in self._layers.items()]

    def matrices(self, slot: int, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A, (rank, inputs), and B, (outputs, rank), of a slot."""
        a, b = self._cut(self.values[slot : slot + 1])[shape]
        return a[0], b[0]

    def _lower(self, rows: Any, change: torch.Tensor) -> torch.Tensor:
        self.values[rows] -= change
        return change

    def _rows(self, slots: Sequence[int]) -> Any:
        """Return an index of some slots that copies nothing where they are all."""
        return slice(None) if list(slots) == list(range(len(self.values))) else list(slots)

    def _cut(self, values: torch.Tensor) -> dict[Shape, tuple[torch.Tensor, torch.Tensor]]:
        """Return A and B of every layer from rows of factors, shapes (rows, rank, inputs) and (rows, outputs, rank)."""
        sizes = [size for s in self.shapes.values() for size in (s.middle - s.start, s.stop - s.middle)]
        pieces = iter(values.split(sizes, dim=1))  # at once: the gradient of each slice would be as large as the whole
        return {
            shape: (next(pieces).view(-1, self.rank, shape.inputs), next(pieces).view(-1, shape.outputs, self.rank))
            for shape in self.shapes.values()
        }

    def _add(self, shape: Shape, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self._used is None:
            return output
        matrices, blocks = self._used
        a, b = map(blocks.factors_of, matrices[shape])
        inner = torch.bmm(blocks.cut(inputs[0].float()), a.transpose(1, 2))
        return output + (self.scale * blocks.join(torch.bmm(inner, b.transpose(1, 2)))).to(output.dtype)


class _Blocks:
    """Tokens that stand one after the other, some of each slot, cut into blocks of one slot each, and joined again.

    Blocks are short, because rows as long as the longest would mostly hold padding.
    """

    def __init__(self, lengths: Sequence[int], device: Any) -> None:
        self._alone = len(lengths) == 1
        counts = [-(-length // BLOCK) for length in lengths]
        firsts = [BLOCK * sum(counts[:slot]) for slot in range(len(counts))]
        places = [first + place for first, length in zip(firsts, lengths, strict=True) for place in range(length)]
        owners = [slot for slot, count in enumerate(counts) for _ in range(count)]
        self._places, self._owners = torch.tensor(places, device=device), torch.tensor(owners, device=device)

    def factors_of(self, factors: torch.Tensor) -> torch.Tensor:
        """Return the factors of each block's slot, (blocks, ...), from those of all slots, (slots, ...)."""
        return factors if self._alone else factors.index_select(0, self._owners)

    def cut(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return shape (blocks, tokens of a block, width) for (tokens, width)."""
        if self._alone:
            return tokens.unsqueeze(0)
        padded = tokens.new_zeros(len(self._owners) * BLOCK, tokens.shape[1])
        return padded.index_copy(0, self._places, tokens).view(-1, BLOCK, tokens.shape[1])

    def join(self, blocks: torch.Tensor) -> torch.Tensor:
        flat = blocks.flatten(0, 1)
        return flat if self._alone else flat.index_select(0, self._places)
