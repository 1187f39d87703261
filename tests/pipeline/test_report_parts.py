"""The parts of the report page: verdicts, seeds, which conversations are shown, colours, the curve."""

from itertools import combinations

import numpy as np
import pytest
from erckit.pipeline.config import load_config
from erckit.pipeline.predictions import Prediction
from erckit.pipeline.report.conversations import choose_conversations, pick_evenly, shorten_labels
from erckit.pipeline.report.plots import EMOTION_COLOURS, read_curve
from erckit.pipeline.report.systems import compare_systems, judge, shade_rows, spread
from erckit.pipeline.stages.report import fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st


def answer(dialogue: int, turn: int, gold: str | None) -> Prediction:
    name = f"d{dialogue:03}"
    return Prediction(name, f"{name}-{turn}", turn, "Ada", "So.", gold, "glad", {"glad": 1.0, "calm": 0.0})


dialogues = st.lists(st.lists(st.sampled_from(["glad", "calm", None]), min_size=1, max_size=6), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([(0.1, 2)], "beaten"),
        ([(-2, -0.1)], "worse"),
        ([(0, 2)], "not distinguishable"),
        ([(-2, 0)], "not distinguishable"),
        ([(0.1, 2), (0.2, 3)], "beaten"),
        ([(0.1, 2), (-0.2, 3)], "not distinguishable"),
        ([(0.1, 2), (-3, -1)], "not distinguishable"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero_in_every_seed(intervals, verdict):
    assert judge(intervals) == verdict


def test_systems_stand_by_score_with_oracles_apart():
    scores = {"tfidf": 30.0, "gold history": 44.0, "model": 32.0, "new one": 31.0, "majority": 33.0}
    systems = {
        name: {"w_f1": score, "w_f1_interval": [score - 1, score + 1], "oracle": name == "gold history"}
        | ({} if name == "model" else {"model_minus_this": {"w_f1": 32 - score, "interval": [0.5, 32 - score]}})
        for name, score in scores.items()
    }
    found = compare_systems([{"splits": {"dev": {"systems": systems}, "test": {"systems": systems}}}])

    assert [system.name for system in found] == ["model", "majority", "new one", "tfidf", "gold history"]
    assert found[0].verdict is None and found[-1].verdict is None and found[2].title == "new one"


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_the_spread_of_seeds_is_that_of_numpy(values):
    found = spread(values)

    assert found.mean == pytest.approx(np.mean(values)) and found.deviation == pytest.approx(np.std(values, ddof=1))
    assert found.low <= found.mean <= found.high
    assert found.high - found.mean >= 1.95 * found.deviation / np.sqrt(len(values)) - 1e-9  # wider than a normal one


@settings(deadline=None)
@given(dialogues, st.integers(0, 5))
def test_conversations_are_shown_in_order_with_one_that_errs_much(corpus, count):
    answers = [answer(d, t, gold) for d, turns in enumerate(corpus) for t, gold in enumerate(turns)]
    shown = choose_conversations(list(reversed(answers)), count)

    assert len({talk.id for talk in shown}) == len(shown) == min(count, len(corpus))
    for talk in shown:
        turns = corpus[int(talk.id[1:])]
        assert [turn.gold for turn in talk.turns] == turns and talk.length == len(turns)
        assert (talk.right, talk.labelled) == (turns.count("glad"), len(turns) - turns.count(None))
    places = [int(talk.id[1:]) for talk in shown]
    assert places == sorted(places, reverse=True)  # the order of the predictions
    worst = [corpus[int(talk.id[1:])] for talk in shown if talk.worst]
    assert len(worst) == (count > 0 and any(set(turns) - {None} for turns in corpus))
    sizes = sorted(len(turns) - turns.count(None) for turns in corpus if set(turns) - {None})
    for turns in worst:
        size = len(turns) - turns.count(None)
        assert size >= sizes[(len(sizes) - 1) // 2]
        longer = [one for one in corpus if len(one) - one.count(None) >= max(size, sizes[len(sizes) // 2])]
        assert all(turns.count("calm") / size >= one.count("calm") / (len(one) - one.count(None)) for one in longer)


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 30))
def test_an_even_choice_leaves_no_gap_longer_than_another_by_more_than_one(size, count):
    chosen = pick_evenly(range(size), count)

    assert len(chosen) == min(size, count)
    gaps = np.diff(chosen)
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


@settings(deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=5), min_size=2, max_size=9, unique=True))
def test_short_labels_stay_apart(labels):
    short = shorten_labels(labels)

    assert len(set(short.values())) == len(labels) and all(label.startswith(short[label]) for label in labels)


def test_shades_are_shares_of_the_row_up_to_the_largest():
    # The shares are 1/4 3/4, 1/2 1/2 and none; the largest is 3/4.
    assert shade_rows([[1, 3], [5, 5], [0, 0]]) == [pytest.approx([1 / 3, 1]), pytest.approx([2 / 3, 2 / 3]), [0, 0]]
    assert shade_rows([[0, 0], [0, 0]]) == [[0, 0], [0, 0]]


# How eyes without one kind of cone see linear RGB (Machado, Oliveira and Fernandes 2009, full severity).
EYES = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    share = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab under D65, for colours brighter than black."""
    x, y, z = np.cbrt(np.maximum(XYZ @ rgb / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_the_colours_of_seven_emotions_stay_apart_for_every_eye(eye):
    seen = [lab(np.clip(np.array(EYES[eye]) @ linear(colour), 0, 1)) for colour in EMOTION_COLOURS[:7]]

    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) > 12  # 2.3 is just noticeable


def test_the_dark_letters_on_an_emotion_are_readable():
    luminance = {colour: XYZ[1] @ linear(colour) for colour in (*EMOTION_COLOURS, "#1d2730")}

    assert all(
        (luminance[colour] + 0.05) / (luminance["#1d2730"] + 0.05) >= 4.5 for colour in EMOTION_COLOURS
    )  # WCAG AA


def test_the_kept_look_is_the_first_of_the_best():
    log = [
        {"loss": 1.5, "epoch": 0.5, "step": 10},
        {"eval_w_f1": 20.0, "epoch": 1.0, "step": 20},
        {"eval_w_f1": 31.25, "epoch": 2.0, "step": 40},
        {"eval_w_f1": 31.25, "epoch": 3.0, "step": 60},
        {"train_loss": 1.0, "epoch": 3.0, "step": 60},
    ]
    curve = read_curve(log)

    assert curve is not None and curve.losses == ((10, 1.5),) and curve.looks[curve.kept] == (2.0, 40, 31.25)
    assert read_curve(log[:1]) is None


def test_a_page_is_out_of_date_once_any_of_the_configuration_it_shows_changed():
    configs = [load_config("sample", [setting]) for setting in ("seed=1", "seed=2", "train.patience=9", "seed=1")]
    first, *others, again = [fingerprint(config) for config in configs]

    assert first == again and len({first, *others}) == 3
