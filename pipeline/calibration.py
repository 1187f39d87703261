"""Calibration: whether answers are right as often as their probabilities say, and its noise by resampling dialogues."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.labels import LabelSet
from .metrics import interval, keep_occurring, resample
from .predictions import Prediction

BINS = 15
"""Equal-width bins of confidence, each without its lower edge, as Guo et al. 2017 (arXiv 1706.04599) have them."""


def measure_calibration(
    predictions: Sequence[Prediction], labels: LabelSet, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the expected calibration error, the Brier score and the bins of a reliability plot, with 95 % intervals.

    `ece`, in percent, is how far accuracy lies from confidence in a bin, on average over the labelled utterances;
    confidence is the probability of the answer. Chance alone makes it larger than 0, in a resample more than in the
    data: it is to be compared, on as many utterances. `brier` is the squared distance of all probabilities from the
    truth, 0 to 2, on average. Bins without an utterance are left out.
    """
    labelled = [prediction for prediction in predictions if prediction.gold is not None]
    probabilities = np.array([[one.probabilities[label] for label in labels] for one in labelled])
    gold = np.array([labels.index(str(one.gold)) for one in labelled])
    answered = np.array([labels.index(one.label) for one in labelled])
    confidence = probabilities[np.arange(len(labelled)), answered]
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    distance = np.square(probabilities - np.eye(len(labels))[gold]).sum(axis=1)

    places = {dialogue: place for place, dialogue in enumerate(dict.fromkeys(one.dialogue for one in labelled))}
    dialogues = np.array([places[one.dialogue] for one in labelled])
    # Of each dialogue and bin: the utterances, and the sums of confidence, of right answers and of squared distance.
    sums = np.zeros((len(places), BINS, 4))
    measured = np.stack([np.ones_like(confidence), confidence, gold == answered, distance], axis=1)
    np.add.at(sums, (dialogues, bins), measured)
    whole, drawn = sums.sum(axis=0), resample(sums, resamples, seed)
    return {
        "ece": float(_expected_error(whole)),
        "ece_interval": interval(_expected_error(drawn)),
        "brier": float(_brier_score(whole)),
        "brier_interval": interval(_brier_score(drawn)),
        "bins": [_describe_bin(whole[bin], drawn[:, bin], float(edges[bin])) for bin in np.unique(bins)],
    }


def _expected_error(sums: np.ndarray) -> np.ndarray:
    """Return the expected calibration error in percent, from sums of shape (..., bins, 4) to (...)."""
    return 100 * np.abs(sums[..., 2] - sums[..., 1]).sum(axis=-1) / sums[..., 0].sum(axis=-1)


def _brier_score(sums: np.ndarray) -> np.ndarray:
    return sums[..., 3].sum(axis=-1) / sums[..., 0].sum(axis=-1)


def _describe_bin(whole: np.ndarray, drawn: np.ndarray, edge: float) -> dict[str, Any]:
    """Return what a bin holds, of sums of shape (4,), with the noise of its accuracy, of shape (resamples, 4)."""
    drawn = keep_occurring(drawn, whole)
    return {
        "from": round(100 * edge, 2),
        "utterances": int(whole[0]),
        "confidence": 100 * float(whole[1] / whole[0]),
        "accuracy": 100 * float(whole[2] / whole[0]),
        "accuracy_interval": interval(100 * drawn[:, 2] / drawn[:, 0]),
    }
