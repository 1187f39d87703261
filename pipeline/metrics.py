"""Metrics of confusion matrices, their noise by resampling whole dialogues, and a test of two systems by swaps."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np

from ..data.labels import LabelSet


def confusion_matrix(gold: Sequence[int], answered: Sequence[int], labels: int) -> np.ndarray:
    """Return counts of shape (labels, labels): rows gold, columns answered."""
    matrix = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(matrix, (np.asarray(gold, dtype=int), np.asarray(answered, dtype=int)), 1)
    return matrix


def f1_scores(confusion: np.ndarray) -> np.ndarray:
    """Return the F1 of each label in percent, shape (..., labels); 0 where it is neither gold nor answered."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    total = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return 200 * hits / np.maximum(total, 1)


def weighted_f1(confusion: np.ndarray) -> np.ndarray:
    """Return W-F1 in percent, shape (...): the F1 of each label weighted by its share of the gold labels."""
    support = confusion.sum(axis=-1)
    return (f1_scores(confusion) * support).sum(axis=-1) / np.maximum(support.sum(axis=-1), 1)


def micro_f1(confusion: np.ndarray, without: int) -> np.ndarray:
    """Return the micro F1 in percent over all labels but the one at `without`, shape (...); 0 where none occurs.

    The metric of DailyDialog, four fifths of which are neutral: its hits do not count, confusions with it do.
    """
    kept = np.arange(confusion.shape[-1]) != without
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)[..., kept].sum(axis=-1)
    total = (confusion.sum(axis=-1) + confusion.sum(axis=-2))[..., kept].sum(axis=-1)
    return 200 * hits / np.maximum(total, 1)


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Return the mean F1 of the labels in percent, shape (...)."""
    return f1_scores(confusion).mean(axis=-1)


def accuracy(confusion: np.ndarray) -> np.ndarray:
    """Return the share of right answers in percent, shape (...)."""
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return 100 * hits / np.maximum(confusion.sum(axis=(-2, -1)), 1)


Score = Callable[[np.ndarray], np.ndarray]
"""What is measured of confusion matrices: from shape (..., labels, labels) to (...)."""
SCORES: dict[str, Score] = {
    "w_f1": weighted_f1,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
}
WITHOUT_NEUTRAL = "micro_f1_without_neutral"
TITLES = {
    "w_f1": "W-F1",
    "macro_f1": "macro F1",
    WITHOUT_NEUTRAL: "micro F1 without neutral",
    "accuracy": "accuracy",
}


def choose_scores(labels: LabelSet) -> dict[str, Score]:
    """Return what is measured of answers with these labels: SCORES, and micro F1 without the neutral label if any."""
    if labels.neutral is None:
        return SCORES
    return SCORES | {WITHOUT_NEUTRAL: partial(micro_f1, without=labels.index(labels.neutral))}


def resample(counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return bootstrap sums over dialogues, shape (resamples, ...), each of as many dialogues as there are.

    `counts` has something to sum for each dialogue, such as a confusion matrix, shape (dialogues, ...). Utterances of a
    dialogue are not independent, so whole dialogues are drawn. The draws depend on the seed and the number of dialogues
    alone: two systems resampled with the same seed on the same dialogues are paired.
    """
    return np.tensordot(_draw_dialogues(len(counts), resamples, seed), counts.astype(float), axes=1)


def keep_occurring(drawn: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return the resamples that hold something, of what not every dialogue has; where none does, the whole as one."""
    occurring = drawn[drawn.reshape(len(drawn), -1).any(axis=1)]
    return occurring if len(occurring) else whole[np.newaxis]


@lru_cache(maxsize=1)  # many things are counted of the same dialogues
def _draw_dialogues(dialogues: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each dialogue is drawn, shape (resamples, dialogues)."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(dialogues, np.full(dialogues, 1 / dialogues), size=resamples)
    return drawn.astype(float)  # whole numbers of that size are exact, and products of floats are fast


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval that holds `level` of the values."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def deviate(scores: Sequence[float] | np.ndarray) -> float | None:
    """Return the standard deviation of scores that differ in the seed, None for a single one."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def swap(first: np.ndarray, second: np.ndarray, times: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums over dialogues of two systems that exchange their answers to some, each of shape (times, ...).

    Both have something to sum for each dialogue, shape (dialogues, ...). A coin decides for each dialogue as a whole.
    """
    coins = np.random.default_rng(seed).integers(0, 2, size=(times, len(first)))
    moved = np.tensordot(coins.astype(float), (second - first).astype(float), axes=1)
    return first.sum(axis=0) + moved, second.sum(axis=0) - moved


def p_value(difference: float, swapped: np.ndarray) -> float:
    """Return the two-sided p-value of a difference, given those after swaps, which hold it under no difference at all.

    The observed one counts as a swap too (Phipson and Smyth 2010), so that no p-value is 0.
    """
    as_large = np.abs(swapped) >= abs(difference) - 1e-9  # sums in another order end in other digits
    return float((1 + as_large.sum()) / (1 + len(swapped)))
