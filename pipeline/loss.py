"""The class-weighted loss: what each label weighs, and the weighted mean over a whole accumulated batch."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING

from ..data.errors import DataError

if TYPE_CHECKING:
    import torch


def class_weights(scheme: str, counts: Mapping[str, int], beta: float) -> dict[str, float]:
    """Return a weight for every label, such that the average over the training examples is 1.

    "inverse" is 1/n, "sqrt_inverse" 1/sqrt(n), "effective_number" (1 - beta) / (1 - beta^n) (Cui et al. 2019,
    arXiv 1901.05555, equation 2), "none" 1, with n the training examples of the label.
    Raises DataError for a label without any.
    """
    absent = [label for label, count in counts.items() if count == 0]
    if absent:
        raise DataError(
            f"no training example of {', '.join(absent)}: nothing can be learned of it. Add some, or drop it."
        )
    weigh = {
        "none": lambda n: 1.0,
        "inverse": lambda n: 1 / n,
        "sqrt_inverse": lambda n: 1 / sqrt(n),
        "effective_number": lambda n: (1 - beta) / (1 - beta**n),
    }[scheme]
    raw = {label: weigh(count) for label, count in counts.items()}
    mean = sum(raw[label] * count for label, count in counts.items()) / sum(counts.values())
    return {label: weight / mean for label, weight in raw.items()}


def weighted_mean(losses: "torch.Tensor", weights: "torch.Tensor", total: "torch.Tensor | float") -> "torch.Tensor":
    """Return the part of a weighted mean loss that these examples contribute; both of shape (examples,).

    `total` is the sum of weights over ALL examples of the optimiser step, so that however they are cut into forward
    passes, the parts add up to the same. It is what `cross_entropy(weight=...)` computes where answers are one token.
    """
    return (losses * weights).sum() / total


def confusion_errors(confusion: Sequence[Sequence[int]] | None, counts: Sequence[int]) -> list[list[float]]:
    """Return, for each gold label, how likely each other one is when the model errs: rows of shape (labels, labels).

    From a confusion matrix (rows gold, columns answered), smoothed by one error spread like `counts`, the training
    counts; they alone decide where there is no confusion yet. The diagonal is 0.
    """
    rows = []
    for gold in range(len(counts)):
        others = [0.0 if label == gold else count / (sum(counts) - counts[gold]) for label, count in enumerate(counts)]
        seen = confusion[gold] if confusion is not None else [0] * len(counts)
        errors = [prior + (0 if label == gold else seen[label]) for label, prior in enumerate(others)]
        rows.append([error / sum(errors) for error in errors])
    return rows
