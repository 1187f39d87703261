"""Systems side by side: how well each does, which the model beats, and how far seeds lie apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MODEL = "model"
TITLES = {
    MODEL: "the model",
    "gold history": "the model, told gold recent emotions",
    "majority": "majority class",
    "tfidf": "TF-IDF + logistic regression",
    "encoder": "frozen encoder + logistic regression",
}
BEATEN, EVEN, WORSE = "beaten", "not distinguishable", "worse"


@dataclass(frozen=True, slots=True)
class Score:
    """W-F1, or a difference of two, in percent, with its 95 % interval by resampling dialogues."""

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of a forest plot; `note` stands beside its value."""

    title: str
    score: Score
    note: str = ""
    oracle: bool = False


@dataclass(frozen=True, slots=True)
class System:
    """What answered. `verdict` says how it fares against the model: None for the model itself and for oracles."""

    name: str
    title: str
    oracle: bool
    test: Score
    dev: Score | None
    difference: Score | None
    verdict: str | None
    beaten_in: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, standard deviation and 95 % interval (Student's t) of values that differ in nothing but the seed."""

    mean: float
    deviation: float
    low: float
    high: float


def compare_systems(metrics: Sequence[Mapping[str, Any]]) -> list[System]:
    """Return the model, then baselines from the best down, then oracles.

    `metrics` holds the metrics.json of each seed. Scores are those of the first; a verdict needs all seeds to agree.
    """
    splits: Mapping[str, Any] = metrics[0]["splits"]
    test, dev = splits["test"]["systems"], splits["dev"]["systems"]
    compared = []
    for name, result in test.items():
        seeds = [found for one in metrics if (found := one["splits"]["test"]["systems"].get(name))]
        intervals = [one["model_minus_this"]["interval"] for one in seeds if "model_minus_this" in one]
        difference = result.get("model_minus_this")
        compared.append(
            System(
                name=name,
                title=str(TITLES.get(name, name)),
                oracle=result["oracle"],
                test=Score(result["w_f1"], *result["w_f1_interval"]),
                dev=Score(dev[name]["w_f1"], *dev[name]["w_f1_interval"]) if name in dev else None,
                difference=Score(difference["w_f1"], *difference["interval"]) if difference else None,
                verdict=judge(intervals) if intervals and not result["oracle"] else None,
                beaten_in=sum(judge([pair]) == BEATEN for pair in intervals),
            )
        )
    return sorted(compared, key=lambda system: (system.name != MODEL, system.oracle, -system.test.value))


def judge(intervals: Sequence[Sequence[float]]) -> str:
    """Say how a baseline fares, from the interval of the model's lead over it in every seed."""
    if all(low > 0 for low, _ in intervals):
        return BEATEN
    return WORSE if all(high < 0 for _, high in intervals) else EVEN


def shade_rows(confusion: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return each count as a share of its row, scaled so that the largest share of all is 1; empty rows are 0."""
    counts = np.asarray(confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return (shares / (shares.max() or 1)).tolist()


def spread(values: Sequence[float]) -> Spread:
    """Return how two values or more spread."""
    from scipy.special import stdtrit

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    # Student's t, because a handful of seeds says little about their own spread.
    half = float(stdtrit(len(values) - 1, 0.975)) * deviation / len(values) ** 0.5
    return Spread(mean, deviation, mean - half, mean + half)
