"""Metrics equal scikit-learn's, and their noise is a bootstrap over whole dialogues."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from erckit.data.errors import DataError
from erckit.data.labels import LabelSet
from erckit.pipeline.metrics import (
    SCORES,
    accuracy,
    confusion_matrix,
    deviate,
    f1_scores,
    interval,
    macro_f1,
    micro_f1,
    p_value,
    resample,
    swap,
    weighted_f1,
)
from erckit.pipeline.predictions import Prediction
from erckit.pipeline.stages.evaluate import evaluate_systems
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test
from sklearn import metrics as sklearn_metrics

LABELS = LabelSet(("joyful", "mad", "sad"))

answered_pairs = st.integers(2, 7).flatmap(
    lambda labels: st.tuples(
        st.just(labels),
        st.lists(st.tuples(st.integers(0, labels - 1), st.integers(0, labels - 1)), min_size=1, max_size=60),
    )
)


@given(answered_pairs)
def test_scores_equal_those_of_scikit_learn(case):
    labels, pairs = case
    gold, answered = map(list, zip(*pairs, strict=True))
    confusion = confusion_matrix(gold, answered, labels)

    def expected(average, kept=range(labels)):
        return sklearn_metrics.f1_score(gold, answered, labels=kept, average=average, zero_division=0)

    assert (confusion == sklearn_metrics.confusion_matrix(gold, answered, labels=range(labels))).all()
    np.testing.assert_allclose(f1_scores(confusion), 100 * expected(None))
    np.testing.assert_allclose(weighted_f1(confusion), 100 * expected("weighted"))
    for without in range(labels):
        kept = [label for label in range(labels) if label != without]
        np.testing.assert_allclose(micro_f1(confusion, without), 100 * expected("micro", kept))
    np.testing.assert_allclose(macro_f1(confusion), 100 * expected("macro"))
    np.testing.assert_allclose(accuracy(confusion), 100 * sklearn_metrics.accuracy_score(gold, answered))


def test_scores_of_many_matrices_are_those_of_each():
    confusions = np.random.default_rng(0).integers(0, 9, size=(5, 4, 4))
    for score in SCORES.values():
        np.testing.assert_array_equal(score(confusions), [score(one) for one in confusions])
    np.testing.assert_array_equal(f1_scores(confusions), [f1_scores(one) for one in confusions])
    np.testing.assert_array_equal(micro_f1(confusions, 2), [micro_f1(one, 2) for one in confusions])


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_each_draw_has_as_many_dialogues_and_equal_seeds_draw_the_same_ones(dialogues, resamples, seed):
    # In the first system, dialogue d answers utterance type d: the diagonal counts how often each was drawn.
    first = np.array([np.diag(np.eye(dialogues, dtype=int)[d]) for d in range(dialogues)])
    second = first * 3
    drawn = resample(first, resamples, seed)

    assert drawn.shape == (resamples, dialogues, dialogues)
    assert (drawn.sum(axis=(1, 2)) == dialogues).all()
    assert (resample(second, resamples, seed) == 3 * drawn).all()


def test_interval_of_a_hand_case():
    assert interval(np.arange(1001)) == pytest.approx((25, 975))
    assert interval(np.arange(1001), level=0.5) == pytest.approx((250, 750))
    assert interval(np.array([7.0])) == (7.0, 7.0)


def test_interval_equals_a_bootstrap_in_plain_python():
    generator = np.random.default_rng(3)
    confusions = generator.integers(0, 4, size=(9, 3, 3))
    scores = []
    for counts in np.random.default_rng(11).multinomial(9, [1 / 9] * 9, size=200):
        drawn = [dialogue for dialogue, count in enumerate(counts) for _ in range(count)]
        scores.append(plain_weighted_f1([confusions[dialogue].tolist() for dialogue in drawn]))
    scores.sort()

    # The 2.5 % point of 200 sorted values lies 0.975 of the way from the 5th to the 6th.
    low = scores[4] + 0.975 * (scores[5] - scores[4])
    high = scores[194] + 0.025 * (scores[195] - scores[194])
    assert interval(weighted_f1(resample(confusions, 200, seed=11))) == pytest.approx((low, high))


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    truth = weighted_f1(np.array([[6.0, 2.0], [1.0, 3.0]]))
    held = 0
    for _ in range(200):
        # Utterances of a dialogue are alike: each dialogue has one (gold, answered) pair, ten times.
        pairs = generator.multinomial(1, [0.5, 1 / 6, 1 / 12, 0.25], size=60).reshape(60, 2, 2) * 10
        low, high = interval(weighted_f1(resample(pairs, 200, seed=1)))
        held += low <= truth <= high
    assert 0.88 <= held / 200 <= 0.99  # 95 % within four standard deviations; drawn utterance by utterance: about 46 %


@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_swaps_exchange_whole_dialogues_and_nothing_else(dialogues, seed):
    generator = np.random.default_rng(seed)
    first, second = generator.integers(0, 5, size=(2, dialogues, 2, 3, 3))
    swapped = swap(first, second, 40, seed)

    possible = [
        (
            np.where(coins[:, None, None, None], second, first).sum(0),
            np.where(coins[:, None, None, None], first, second).sum(0),
        )
        for coins in map(np.array, product([False, True], repeat=dialogues))
    ]
    for pair in zip(*swapped, strict=True):
        assert any(all(map(np.array_equal, pair, other)) for other in possible)


def test_the_p_value_is_that_of_scipy_and_of_all_swaps():
    generator = np.random.default_rng(2)
    first, second = generator.integers(0, 4, size=(2, 9, 3, 3))
    second += np.eye(3, dtype=int) * generator.integers(0, 3, size=(9, 1, 1))

    def differ(one, other):
        return weighted_f1(other.sum(axis=0)) - weighted_f1(one.sum(axis=0))

    difference = differ(first, second)
    everything = []
    for coins in product([False, True], repeat=9):
        where = np.array(coins)[:, None, None]
        everything.append(differ(np.where(where, second, first), np.where(where, first, second)))
    exact = np.mean(np.abs(everything) >= abs(difference) - 1e-9)
    one, other = swap(first, second, 20_000, seed=1)
    found = p_value(float(difference), weighted_f1(other) - weighted_f1(one))
    assert 0.01 < exact < 0.9 and found == pytest.approx(exact, abs=0.015)  # four standard deviations

    rights = np.stack([np.trace(counts, axis1=1, axis2=2) for counts in (first, second)])
    test = permutation_test(rights, lambda a, b, axis: (b - a).sum(axis), permutation_type="samples", vectorized=True)
    hits = [np.trace(counts, axis1=1, axis2=2) for counts in (one, other)]
    assert p_value(rights[1].sum() - rights[0].sum(), hits[1] - hits[0]) == pytest.approx(test.pvalue, abs=0.015)


def test_the_p_value_counts_the_observed_difference_too():
    assert p_value(3.0, np.array([1.0, -2.0, 0.0])) == 1 / 4
    assert p_value(-2.0, np.array([1.0, -2.0, 2.0])) == 3 / 4
    assert p_value(0.0, np.array([1.0, 0.0])) == 1.0


def test_seeds_deviate_where_there_are_several():
    assert deviate([40.0]) is None and deviate([40.0, 43.0]) == pytest.approx(3 / np.sqrt(2))


def plain_weighted_f1(matrices: list) -> float:
    labels = range(len(matrices[0]))
    total = [[sum(matrix[gold][answered] for matrix in matrices) for answered in labels] for gold in labels]
    score = 0.0
    for label in labels:
        hits, support = total[label][label], sum(total[label])
        answered = sum(row[label] for row in total)
        if hits:
            precision, recall = hits / answered, hits / support
            score += 100 * support * 2 * precision * recall / (precision + recall)
    return score / sum(map(sum, total))


# Systems compared.


def predict(answers: str, gold: str = "jmsjms", oracle: bool = False, labels: LabelSet = LABELS) -> list[Prediction]:
    """Predictions for dialogues of three turns; a letter is a label's first, "-" an utterance nobody labelled."""
    names = {name[0]: name for name in labels}
    return [
        Prediction(
            dialogue=f"d{place // 3}",
            utterance=f"d{place // 3}-{place % 3}",
            turn=place % 3,
            speaker="Ada",
            text="So be it.",
            gold=names.get(truth),
            label=names[answer],
            probabilities={name: float(name == names[answer]) for name in labels},
            oracle=oracle,
        )
        for place, (answer, truth) in enumerate(zip(answers, gold, strict=True))
    ]


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.sampled_from("jms")] * 3), min_size=2, max_size=30), st.integers(0, 99))
def test_systems_are_measured_on_labelled_utterances_and_compared_in_pairs(rows, seed):
    model, other, gold = ("".join(column) for column in zip(*rows, strict=True))
    gold = gold[:-1] + "-"  # the last one is nobody's truth
    found = evaluate_systems({"model": predict(model, gold), "other": predict(other, gold)}, LABELS, 50, seed)

    def score(answers):
        options = {"labels": [*"jms"], "average": "weighted", "zero_division": 0}
        return 100 * sklearn_metrics.f1_score([*gold[:-1]], [*answers[:-1]], **options)

    expected = {"model": score(model), "other": score(other)}
    systems = found["systems"]
    assert found["utterances"] == len(rows) - 1
    assert {name: result["w_f1"] for name, result in systems.items()} == pytest.approx(expected)
    assert systems["model"]["accuracy"] == pytest.approx(
        100 * sum(a == b for a, b in zip(model[:-1], gold[:-1], strict=True)) / (len(rows) - 1)
    )
    difference = systems["other"]["model_minus_this"]
    assert difference["w_f1"] == pytest.approx(expected["model"] - expected["other"])
    assert "model_minus_this" not in systems["model"]


def test_a_system_differs_from_itself_by_nothing_however_noisy_it_is():
    answers = predict("jjsmmj")
    systems = evaluate_systems({"model": answers, "twin": answers}, LABELS, 100, seed=1)["systems"]
    assert systems["twin"]["model_minus_this"] == {"w_f1": 0.0, "interval": (0.0, 0.0)}
    low, high = systems["twin"]["w_f1_interval"]
    assert low < high


def test_per_class_numbers_of_a_hand_case():
    measured = evaluate_systems({"model": predict("jjsjmm")}, LABELS, 10, seed=1)["systems"]["model"]
    assert measured["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert measured["per_class"]["joyful"] == pytest.approx(
        {"precision": 200 / 3, "recall": 100.0, "f1": 80.0, "support": 2}
    )
    assert measured["per_class"]["sad"] == pytest.approx(
        {"precision": 100.0, "recall": 50.0, "f1": 200 / 3, "support": 2}
    )
    assert measured["macro_f1"] == pytest.approx((80 + 50 + 200 / 3) / 3)


@pytest.mark.parametrize("neutral", ["neutral", "no emotion"])
def test_micro_f1_leaves_out_the_label_for_no_emotion_and_nothing_where_there_is_none(neutral):
    assert (
        "micro_f1_without_neutral"
        not in evaluate_systems({"model": predict("jjsjms")}, LABELS, 10, 1)["systems"]["model"]
    )

    # Gold nnnjmj, answered nnjjmn: of two hits of three gold and three answered without n, the F1 is 2 / 3.
    labels = LabelSet((neutral, "joyful", "mad"))
    measured = evaluate_systems({"model": predict("nnjjmn", "nnnjmj", labels=labels)}, labels, 10, seed=1)
    assert measured["systems"]["model"]["micro_f1_without_neutral"] == pytest.approx(200 / 3)


def test_groups_are_scored_apart_on_the_same_resamples():
    answers = predict("jjsjmmjjj", gold="jmsjm-jms")
    groups = {"speaker": {"seen": {("d0", "d0-0"), ("d1", "d1-2"), ("d2", "d2-1")}, "unseen": {("d9", "d9-0")}}}
    found = evaluate_systems({"model": answers}, LABELS, 200, 1, groups)["systems"]["model"]["groups"]

    assert found["speaker"].keys() == {"seen"}  # of the others nobody answered any
    seen = found["speaker"]["seen"]
    assert seen["utterances"] == 2  # one is labelled by nobody
    assert (seen["accuracy"], seen["w_f1"]) == pytest.approx((50.0, 100 / 3))
    scores = []
    for counts in np.random.default_rng(1).multinomial(3, [1 / 3] * 3, size=200):
        if right_and_wrong := counts[0] + counts[2]:  # else no utterance of the group was drawn
            scores.append(100 * counts[0] / right_and_wrong)
    assert len(scores) < 200 and seen["accuracy_interval"] == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])))


def test_every_score_has_the_interval_of_its_resamples():
    answers, gold = "jjsjmmsjjmmsjsm", "jmsjmsjmsjmsjms"
    model = evaluate_systems({"model": predict(answers, gold)}, LABELS, 100, seed=4)["systems"]["model"]
    drawn = {"w_f1": [], "macro_f1": [], "accuracy": []}
    for counts in np.random.default_rng(4).multinomial(5, [1 / 5] * 5, size=100):
        places = [
            3 * dialogue + turn for dialogue, count in enumerate(counts) for _ in range(count) for turn in range(3)
        ]
        a, g = [answers[place] for place in places], [gold[place] for place in places]
        options = {"labels": [*"jms"], "zero_division": 0}
        drawn["w_f1"].append(100 * sklearn_metrics.f1_score(g, a, average="weighted", **options))
        drawn["macro_f1"].append(100 * sklearn_metrics.f1_score(g, a, average="macro", **options))
        drawn["accuracy"].append(100 * sklearn_metrics.accuracy_score(g, a))
    for name, scores in drawn.items():
        assert model[f"{name}_interval"] == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])))


def test_an_oracle_is_marked():
    systems = {"model": predict("jmsjms"), "gold history": predict("jmsjms", oracle=True)}
    found = evaluate_systems(systems, LABELS, 10, seed=1)["systems"]
    assert {name: result["oracle"] for name, result in found.items()} == {"model": False, "gold history": True}


@pytest.mark.parametrize(
    "change",
    [
        lambda answers: answers[:-1],
        lambda answers: [*answers[:-1], replace(answers[-1], utterance="another")],
        lambda answers: [*answers[:-1], replace(answers[-1], dialogue="another")],
        lambda answers: [*answers[:-1], replace(answers[-1], gold="mad")],
    ],
    ids=["fewer", "another utterance", "another dialogue", "another gold label"],
)
def test_systems_that_answered_something_else_are_not_compared(change):
    answers = predict("jmsjms")
    with pytest.raises(DataError, match=re.escape("'majority' answered other utterances than the model, or has other")):
        evaluate_systems({"model": answers, "majority": change(answers)}, LABELS, 10, seed=1)


def test_without_any_gold_label_nothing_is_evaluated():
    with pytest.raises(DataError, match=re.escape("no utterance is labelled, so nothing can be evaluated. Run the st")):
        evaluate_systems({"model": predict("jmsjms", gold="------")}, LABELS, 10, seed=1)
