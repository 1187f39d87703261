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
        self._used: tuple[torch.Tensor, _Rows] | None = None

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
        everybody = list(slots) == list(range(len(self.values)))
        values = (self.values if everybody else self.values[list(slots)]).detach().requires_grad_()
        self._used = (values, _Rows(lengths, self.values.device))
        try:
            yield values
        finally:
            self._used = None

    def step(self, slots: Sequence[int], gradients: torch.Tensor, *, rates: torch.Tensor, adamw: bool) -> None:
        """Write: one step of AdamW without weight decay, or of plain gradient descent, on the factors of some slots.

        `gradients` has shape (slots, parameters), `rates` (slots,).
        """
        rows = list(slots)
        self.steps[rows] += 1
        if not adamw:
            self.values[rows] -= rates[:, None] * gradients
            return
        first = self.moments[0, rows].lerp(gradients, 1 - BETAS[0])
        second = self.moments[1, rows].lerp(gradients.square(), 1 - BETAS[1])
        self.moments[0, rows], self.moments[1, rows] = first, second
        unbias_first, unbias_second = (1 - torch.pow(beta, self.steps[rows])[:, None] for beta in BETAS)
        change = (first / unbias_first) / ((second / unbias_second).sqrt() + EPSILON)
        self.values[rows] -= rates[:, None] * change

    def decay(self, slots: Sequence[int], share: float) -> None:
        """Draw B, and with it all that is remembered, towards 0."""
        self.values[list(slots)] *= torch.where(self.is_b, 1 - share, 1.0)

    def sizes(self, slots: Sequence[int]) -> torch.Tensor:
        """Return the root mean square of the entries of all B together, shape (slots,)."""
        return self.values[list(slots)][:, self.is_b].square().mean(dim=1).sqrt()

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
        a, b = self._split(self.values[slot : slot + 1], shape)
        return a[0], b[0]

    def _split(self, values: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B of rows of factors, shapes (rows, rank, inputs) and (rows, outputs, rank)."""
        a, b = values[:, shape.start : shape.middle], values[:, shape.middle : shape.stop]
        return a.view(-1, self.rank, shape.inputs), b.view(-1, shape.outputs, self.rank)

    def _add(self, shape: Shape, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self._used is None:
            return output
        values, rows = self._used
        a, b = self._split(values, shape)
        inner = torch.bmm(rows.spread(inputs[0].float()), a.transpose(1, 2))
        return output + (self.scale * rows.join(torch.bmm(inner, b.transpose(1, 2)))).to(output.dtype)


class _Rows:
    """Tokens that stand one after the other, spread to one padded row a slot, and joined again."""

    def __init__(self, lengths: Sequence[int], device: Any) -> None:
        self._count, widest = len(lengths), max(lengths)
        places = [slot * widest + place for slot, length in enumerate(lengths) for place in range(length)]
        self._widest, self._places = widest, torch.tensor(places, device=device)
        self._even = min(lengths) == widest

    def spread(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return shape (slots, widest, width) for (tokens, width)."""
        if not self._even:
            tokens = tokens.new_zeros(self._count * self._widest, tokens.shape[1]).index_copy(0, self._places, tokens)
        return tokens.view(self._count, self._widest, -1)

    def join(self, rows: torch.Tensor) -> torch.Tensor:
        flat = rows.flatten(0, 1)
        return flat if self._even else flat[self._places]
