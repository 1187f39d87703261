"""Two runs compared: in pairs of dialogues, over all their seeds, and only where they answered the same."""

import re
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
from erckit.data.errors import DataError
from erckit.data.files import read_json, write_sealed
from erckit.pipeline.cli import main
from erckit.pipeline.compare import CHANGES, compare_runs
from erckit.pipeline.manifest import read_manifest
from erckit.pipeline.metrics import TITLES
from erckit.pipeline.predictions import Prediction
from erckit.pipeline.report.comparison import render_comparison
from sklearn.metrics import accuracy_score, f1_score

from tests.pipeline import fake_report
from tests.pipeline.fake_report import RESAMPLES

LABELS = ("glad", "neutral", "gloomy")
draw_answers, write_run = (partial(make, labels=LABELS) for make in (fake_report.draw_answers, fake_report.write_run))


def score(name: str, answers: list[Prediction]) -> float:
    gold, found = [one.gold for one in answers], [one.label for one in answers]
    if name == "accuracy":
        return 100 * accuracy_score(gold, found)
    if name in LABELS:
        return 100 * f1_score(gold, found, labels=[name], average="macro", zero_division=0)
    if name == "micro_f1_without_neutral":
        return 100 * f1_score(gold, found, labels=["glad", "gloomy"], average="micro", zero_division=0)
    average = {"w_f1": "weighted", "macro_f1": "macro"}[name]
    return 100 * f1_score(gold, found, labels=list(LABELS), average=average, zero_division=0)


def by_place(answers: list[Prediction]) -> list[list[Prediction]]:
    """The labelled answers of each dialogue."""
    return [[one for one in answers if one.dialogue == f"d{place}" and one.gold] for place in range(6)]


@pytest.mark.parametrize(("seeds_a", "seeds_b"), [(1, 1), (2, 3)])
def test_differences_are_those_of_scikit_learn_on_the_same_dialogues(tmp_path, seeds_a, seeds_b):
    generator = np.random.default_rng(11)
    runs = [[draw_answers(generator) for _ in range(seeds)] for seeds in (seeds_a, seeds_b)]
    found = compare_runs(write_run(tmp_path / "a", *runs[0]), write_run(tmp_path / "b", *runs[1]), "test")

    def average(name, run, draws):
        """The mean over the seeds of a run, of dialogues by their places."""
        groups = [by_place(answers) for answers in run]
        return np.mean([score(name, [one for place in draws for one in some[place]]) for some in groups])

    counts = np.random.default_rng(1).multinomial(6, [1 / 6] * 6, size=RESAMPLES)
    draws = [np.repeat(range(6), count) for count in counts]
    assert found["scores"].keys() == TITLES.keys() and tuple(found["f1"]) == LABELS
    for name, one in (found["scores"] | found["f1"]).items():
        scores = [[score(name, [p for p in answers if p.gold]) for answers in run] for run in runs]
        assert (one["a"], one["b"]) == pytest.approx(tuple(map(np.mean, scores)))
        assert one["a_deviation"] == (pytest.approx(np.std(scores[0], ddof=1)) if seeds_a > 1 else None)
        assert one["b_minus_a"] == pytest.approx(np.mean(scores[1]) - np.mean(scores[0]))
        drawn = [np.array([average(name, run, some) for some in draws]) for run in runs]
        for key, values in (("a_interval", drawn[0]), ("b_interval", drawn[1]), ("interval", drawn[1] - drawn[0])):
            assert one[key] == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
        swapped = []
        for coins in np.random.default_rng(1).integers(0, 2, size=(RESAMPLES, 6)):
            sides: list[list[float]] = [[], []]
            for slot in range(seeds_a * seeds_b):  # every seed as often as the other run has seeds
                pair = [by_place(runs[0][slot % seeds_a]), by_place(runs[1][slot % seeds_b])]
                for side in (0, 1):
                    some = [one for place, coin in enumerate(coins) for one in pair[side ^ int(coin)][place]]
                    sides[side].append(score(name, some))
            swapped.append(np.mean(sides[1]) - np.mean(sides[0]))
        as_large = np.sum(np.abs(swapped) >= abs(one["b_minus_a"]) - 1e-9)
        assert one["p"] == pytest.approx((1 + as_large) / (1 + RESAMPLES))


def test_who_is_right_is_counted_over_all_pairs_of_seeds_and_changes_are_means(tmp_path):
    generator = np.random.default_rng(3)
    runs = [[draw_answers(generator) for _ in range(seeds)] for seeds in (2, 3)]
    found = compare_runs(write_run(tmp_path / "a", *runs[0]), write_run(tmp_path / "b", *runs[1]), "test")

    assert found["utterances"] == 23 and found["dialogues"] == 6
    for label in LABELS:
        counts = dict.fromkeys(("both", "only_a", "only_b", "neither"), 0.0)
        for a, b in product(*runs):
            for one, other in zip(a, b, strict=True):
                if one.gold == label:
                    right = (one.label == label, other.label == label)
                    key = {(True, True): "both", (True, False): "only_a", (False, True): "only_b"}.get(right, "neither")
                    counts[key] += 1 / 6
        assert found["right"][label] == pytest.approx(counts)
    answers = np.zeros((3, 3))
    for a, b in product(*runs):
        for one, other in zip(a, b, strict=True):
            if one.gold:
                answers[LABELS.index(one.label), LABELS.index(other.label)] += 1 / 6
    assert found["answers"] == pytest.approx(answers) and found["same"] == pytest.approx(np.trace(answers) / 23)

    changes = {}
    for place, one in enumerate(runs[0][0]):
        if one.gold:
            means = [np.mean([answers[place].probabilities[one.gold] for answers in run]) for run in runs]
            changes[one.dialogue, one.utterance] = means[1] - means[0]
    expected = sorted(changes, key=lambda key: -abs(changes[key]))[:CHANGES]
    assert [(one["dialogue"], one["utterance"]) for one in found["changes"]] == expected
    assert [one["b_minus_a"] for one in found["changes"]] == pytest.approx([changes[key] for key in expected])


def test_a_run_differs_from_itself_by_nothing(tmp_path):
    run = write_run(tmp_path / "a", draw_answers(np.random.default_rng(0)))
    found = compare_runs(run, run, "test")

    for one in found["scores"].values():
        assert (one["b_minus_a"], one["interval"], one["p"]) == (0.0, (0.0, 0.0), 1.0)
    assert sum(one["only_a"] + one["only_b"] for one in found["right"].values()) == 0


def test_the_command_prints_what_it_writes(tmp_path, capsys):
    generator = np.random.default_rng(5)
    answers = [replace(one, text="Well | no. " * 30, oracle=True) for one in draw_answers(generator)]
    a = write_run(tmp_path / "a", draw_answers(generator), draw_answers(generator), split="dev")
    b = write_run(tmp_path / "b", answers, split="dev")
    assert main(["compare", str(a), str(b), "--split", "dev", "--output", str(tmp_path / "out")]) == 0

    printed = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.md", "compare.json", "compare.html"}
    assert (tmp_path / "out" / "compare.md").read_text() == printed
    found = read_json(tmp_path / "out" / "compare.json")
    assert (tmp_path / "out" / "compare.html").read_text() == render_comparison(found, TITLES)
    w_f1 = found["scores"]["w_f1"]
    assert printed.startswith(f"dev: 23 utterances in 6 dialogues\n\n- A: {a}, seeds 1, 2\n- B: {b} (oracle), seed 1\n")
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in printed.splitlines()]
    row = next(line for line in cells if line and line[0] == "W-F1")
    assert row[1] == f"{w_f1['a']:.2f} ± {w_f1['a_deviation']:.2f}" and row[2] == f"{w_f1['b']:.2f}"
    assert row[3].startswith(f"{w_f1['b_minus_a']:+.2f} [") and row[4] == f"{w_f1['p']:.4f}"
    first = found["changes"][0]
    row = next(line for line in cells if line and line[0] == f"{first['b_minus_a']:+.2f}")
    assert row[1] == first["gold"] and row[4] == f"{first['dialogue']}/{first['turn']}" and len(row) == 6
    assert row[3] == f"{first['b']['label']} ({first['b']['gold_probability']:.2f})"


def test_runs_over_other_utterances_are_refused(tmp_path):
    answers = draw_answers(np.random.default_rng(0))
    a = write_run(tmp_path / "a", answers)
    others = {
        "fewer": (answers[:-2], "22 answers", "found no more, expected d5/2 (glad)"),
        "gold": (
            [replace(answers[0], gold="neutral"), *answers[1:]],
            "24 answers",
            "found d0/0 (neutral), expected d0/0 (glad)",
        ),
        "more": (
            [*answers, replace(answers[-1], utterance="9")],
            "25 answers",
            "found d5/9 (no gold label), expected no more",
        ),
    }
    for name, (changed, count, found) in others.items():
        b = write_run(tmp_path / name, changed)
        message = (
            f"{b}: {count}, expected 24 to the utterances of {a}; the first that differs: {found}. Compare runs over"
        )
        with pytest.raises(DataError, match=re.escape(message)):
            compare_runs(a, b, "test")
    with pytest.raises(DataError, match="22 answers, expected 24"):
        compare_runs(write_run(tmp_path / "mixed", answers, answers[:-2]), a, "test")
    b = write_run(tmp_path / "labels", [], labels=("neutral", "glad", "gloomy"))
    message = f"{b}: the labels are neutral, glad, gloomy; expected glad, neutral, gloomy, as in {a}. Compare runs over"
    with pytest.raises(DataError, match=re.escape(message)):
        compare_runs(a, b, "test")


def test_folders_without_answers_are_named(tmp_path):
    answers = draw_answers(np.random.default_rng(0))
    a = write_run(tmp_path / "a", answers)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: not a run, it has no config.yaml. Name the folder of")):
        compare_runs(a, tmp_path, "test")
    empty = write_run(tmp_path / "empty")
    with pytest.raises(
        DataError, match=re.escape(f"{empty}: no finished answers, expected seed-N/predict. Use `erckit")
    ):
        compare_runs(a, empty, "test")
    (tmp_path / "a" / "seed-1").rename(tmp_path / "a" / "seed-1.old")
    with pytest.raises(DataError, match=re.escape(f"{a}: no finished answers, expected seed-N/predict.")):
        compare_runs(a, a, "test")
    (tmp_path / "a" / "seed-1.old").rename(tmp_path / "a" / "seed-1")
    with pytest.raises(DataError, match=re.escape("seed-1/predict/dev.jsonl: no such file.")):
        compare_runs(a, a, "dev")
    blank = write_run(tmp_path / "blank", [replace(one, gold=None) for one in answers])
    with pytest.raises(DataError, match=re.escape(f"{blank}: no utterance of test is labelled, so nothing can be")):
        compare_runs(blank, blank, "test")


def test_seeds_of_an_older_run_are_not_averaged_in(tmp_path):
    answers = draw_answers(np.random.default_rng(0))
    a = write_run(tmp_path / "a", answers, answers)
    path = a / "seed-2" / "predict" / "manifest.json"
    record = read_manifest(path.parent)
    write_sealed(path, record | {"config": {"predict": {"memory": True}}})
    message = (
        f"{a}: seed 2 was made otherwise than seed 1 (predict.memory changed: True -> False). Bring them up to date "
        "with `erckit run CONFIG --seeds N`, or remove seed-2."
    )
    with pytest.raises(DataError, match=re.escape(message)):
        compare_runs(a, a, "test")
