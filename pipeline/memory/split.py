"""A model in two halves: the layers that no temporary factor touches, and those above them.

What the lower layers make of some tokens does not depend on what is remembered: it is computed once, however often
the upper ones are asked, and nothing is differentiated there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ...data.errors import DataError
from ..attention import Layout, find_layers, packed_logits


class SplitModel:
    """A packed causal model, cut below its `top` last layers; with 0 below all of them.

    Nothing of the model is changed but, while `open` lasts, how its lower layers are called.
    Raises DataError where the model has fewer layers, or no list of them.
    """

    def __init__(self, model: Any, top: int) -> None:
        layers = find_layers(model)
        if top > len(layers):
            raise DataError(
                f"`memory.layers` is {top}, and the model has {len(layers)} layers. Set it to as many at most, or to 0."
            )
        cut = len(layers) - top if top else 0
        self.model, self.lower_layers, self.upper_layers = model, layers[:cut], layers[cut:]
        self._given: torch.Tensor | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let the halves be called while the block lasts; the model as a whole cannot be."""
        entrance = self.upper_layers[0].register_forward_pre_hook(self._enter_upper, prepend=True)
        for layer in self.lower_layers:
            layer.forward = self._make_skippable(layer.forward)
        try:
            yield
        finally:
            entrance.remove()
            for layer in self.lower_layers:
                del layer.forward

    def lower(self, layout: Layout) -> torch.Tensor:
        """Return what enters the upper layers, shape (1, tokens, hidden)."""
        with torch.no_grad():
            try:
                packed_logits(self.model, layout, [0])
            except _Reached as reached:
                return reached.hidden
        raise AssertionError("the model never reached its upper layers")

    def upper(self, layout: Layout, hidden: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
        """Return the logits at some places, shape (places, vocabulary), from what `lower` returned."""
        self._given = hidden
        try:
            return packed_logits(self.model, layout, places)
        finally:
            self._given = None

    def _enter_upper(self, layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._given is None:
            raise _Reached(inputs[0])
        return (self._given, *inputs[1:])

    def _make_skippable(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden_states: torch.Tensor, *inputs: Any, **options: Any) -> Any:
            return hidden_states if self._given is not None else compute(hidden_states, *inputs, **options)

        return forward


class _Reached(Exception):
    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden
