"""Calibration equals hand-computed cases, plain Python and scikit-learn, and its noise is that of dialogues."""

import numpy as np
import pytest
from erckit.data.labels import LabelSet
from erckit.pipeline.calibration import BINS, measure_calibration
from erckit.pipeline.predictions import Prediction
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss

LABELS = LabelSet(("joyful", "mad", "sad"))


def answer(place: int, gold: int | None, weights: tuple[float, ...], dialogue: str = "d") -> Prediction:
    shares = np.array(weights) / sum(weights)
    label, truth = LABELS.names[int(shares.argmax())], None if gold is None else LABELS.names[gold]
    return Prediction(dialogue, str(place), place, "Ada", "So.", truth, label, dict(zip(LABELS, shares, strict=True)))


cases = st.lists(
    st.tuples(st.none() | st.integers(0, 2), st.tuples(*[st.floats(0.01, 1)] * 3), st.sampled_from("abc")),
    min_size=1,
    max_size=40,
).filter(lambda rows: any(row[0] is not None for row in rows))


@given(cases)
def test_scores_are_those_of_plain_python_and_scikit_learn(rows):
    answers = [answer(place, *row) for place, row in enumerate(rows)]
    found = measure_calibration(answers, LABELS, 5, seed=1)

    known = [one for one in answers if one.gold is not None]
    bins: dict[int, list[Prediction]] = {}
    for one in known:
        confidence = one.probabilities[one.label]
        place = next(place for place in range(BINS) if confidence <= np.linspace(0, 1, BINS + 1)[place + 1])
        bins.setdefault(place, []).append(one)
    error = 0.0
    for inside in bins.values():
        right = sum(one.label == one.gold for one in inside) / len(inside)
        sure = sum(one.probabilities[one.label] for one in inside) / len(inside)
        error += len(inside) / len(known) * abs(right - sure)
    assert found["ece"] == pytest.approx(100 * error)
    assert [one["utterances"] for one in found["bins"]] == [len(bins[place]) for place in sorted(bins)]

    gold, probabilities = [one.gold for one in known], [[one.probabilities[label] for label in LABELS] for one in known]
    assert found["brier"] == pytest.approx(
        brier_score_loss(gold, probabilities, labels=list(LABELS), scale_by_half=False)
    )


def test_a_hand_case():
    # Sure by 0.6 twice, once right: half a point of ten off. Sure by 0.8 twice, always right: two points of ten off.
    answers = [
        answer(0, 0, (0.6, 0.2, 0.2)),
        answer(1, 1, (0.6, 0.4, 0.0)),
        answer(2, 2, (0.1, 0.1, 0.8)),
        answer(3, 2, (0.1, 0.1, 0.8)),
    ]
    found = measure_calibration(answers, LABELS, 10, seed=1)

    assert found["ece"] == pytest.approx((10 + 20) / 2)
    assert found["brier"] == pytest.approx((0.24 + 0.72 + 0.06 + 0.06) / 4)
    assert found["ece_interval"] == pytest.approx((15.0, 15.0))  # of one dialogue every resample is the same
    first, second = found["bins"]
    assert (first["from"], first["utterances"]) == (53.33, 2) and second["from"] == 73.33  # 0.8 ends its bin
    assert (first["confidence"], first["accuracy"]) == pytest.approx((60.0, 50.0))
    assert (second["confidence"], second["accuracy"]) == pytest.approx((80.0, 100.0))


def test_the_noise_is_that_of_whole_dialogues():
    generator = np.random.default_rng(0)
    answers = [
        answer(place, int(generator.integers(3)), tuple(generator.random(3) ** 3 + 0.01), f"d{place % 5}")
        for place in range(60)
    ]
    found = measure_calibration(answers, LABELS, 100, seed=7)

    drawn = []
    for counts in np.random.default_rng(7).multinomial(5, [1 / 5] * 5, size=100):
        some = [one for one in answers for _ in range(counts[int(one.dialogue[1:])])]
        drawn.append(measure_calibration(some, LABELS, 1, seed=1))
    for name in ("ece", "brier"):
        expected = np.percentile([one[name] for one in drawn], [2.5, 97.5])
        assert found[f"{name}_interval"] == pytest.approx(tuple(expected))
    for one in found["bins"]:
        accuracies = [
            other["accuracy"] for other_bins in drawn for other in other_bins["bins"] if other["from"] == one["from"]
        ]
        assert one["accuracy_interval"] == pytest.approx(tuple(np.percentile(accuracies, [2.5, 97.5])))
