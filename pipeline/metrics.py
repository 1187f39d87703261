"""Metrics of a confusion matrix, and their noise by resampling whole dialogues."""

from collections.abc import Sequence

import numpy as np


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


def resample(confusions: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return bootstrap confusion matrices, shape (resamples, labels, labels), each of as many dialogues as there are.

    `confusions` has one matrix a dialogue, shape (dialogues, labels, labels). Utterances of a dialogue are not
    independent, so whole dialogues are drawn. The draws depend on the seed and the number of dialogues alone: two
    systems resampled with the same seed on the same dialogues are paired.
    """
    dialogues = len(confusions)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(dialogues, np.full(dialogues, 1 / dialogues), size=resamples)
    return np.tensordot(drawn, confusions, axes=1)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the central interval that holds `level` of the values."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
