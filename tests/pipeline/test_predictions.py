"""Predictions come back from their file as they were, and a file that is not one is refused by line."""

import re
from dataclasses import replace

import numpy as np
import pytest
from erckit.data.errors import DataError
from erckit.data.files import read_json_lines, write_json_lines
from erckit.data.labels import LabelSet
from erckit.pipeline.predictions import (
    Prediction,
    average_answers,
    by_dialogue,
    read_predictions,
    write_predictions,
)
from hypothesis import given
from hypothesis import strategies as st

LABELS = LabelSet(("joyful", "mad", "sad"))

predictions = st.builds(
    Prediction,
    dialogue=st.sampled_from(["d1", "d2", "d3"]),
    utterance=st.text(),
    turn=st.integers(0, 99),
    speaker=st.text(),
    text=st.text(),  # line breaks of Unicode too, which split lines in careless readers
    gold=st.none() | st.sampled_from(LABELS.names),
    label=st.sampled_from(LABELS.names),
    probabilities=st.tuples(*[st.floats(0, 1)] * 3).map(lambda row: dict(zip(LABELS, row, strict=True))),
    oracle=st.booleans(),
    prompt=st.text(),
    made_with=st.none() | st.just({"dtype": "float32", "batch_size": 32}),
)


@given(st.lists(predictions, max_size=8))
def test_what_is_written_comes_back(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("predictions") / "dev.jsonl"
    assert write_predictions(path, written) == len(written)
    assert read_predictions(path, LABELS) == written


@given(st.lists(predictions, max_size=8), st.integers(1, 4), st.randoms())
def test_several_seeds_answer_by_the_mean_of_their_probabilities(answers, seeds, chance):
    drawn = np.random.default_rng(chance.getrandbits(32)).dirichlet(np.ones(3), (seeds, len(answers)))
    by_seed = [
        [
            replace(answer, probabilities=dict(zip(LABELS, row, strict=True)))
            for answer, row in zip(answers, rows, strict=True)
        ]
        for rows in drawn.tolist()
    ]
    together = average_answers(by_seed)
    found = np.array([list(answer.probabilities.values()) for answer in together]).reshape(-1, 3)
    assert np.allclose(found, drawn.mean(axis=0))
    assert [answer.label for answer in together] == [LABELS.names[place] for place in found.argmax(axis=1)]
    assert [(a.dialogue, a.utterance, a.gold) for a in together] == [(a.dialogue, a.utterance, a.gold) for a in answers]
    with pytest.raises(DataError, match="the seeds answered other utterances"):
        average_answers([*by_seed, [*answers, *by_seed[0][:1], Prediction("d", "u", 0, "", "", None, "mad", {})]])


@given(st.lists(predictions, max_size=8))
def test_dialogues_keep_their_utterances_in_order(answers):
    groups = by_dialogue(answers)
    assert {id: [a for a in answers if a.dialogue == id] for id in {a.dialogue for a in answers}} == groups
    assert list(groups) == list(dict.fromkeys(a.dialogue for a in answers))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "happy"}, "dev.jsonl:2: unknown label 'happy'; expected one of joyful, mad, sad."),
        (
            {"probabilities": {"mad": 0.5, "joyful": 0.5, "sad": 0.0}},
            "dev.jsonl:2: probabilities for mad, joyful, sad; expected one for each of joyful, mad, sad, in this "
            "order. Run the predict stage again.",
        ),
        ({"colour": "red"}, "dev.jsonl:2: not a prediction ("),
    ],
)
def test_a_broken_line_is_named(tmp_path, change, message):
    path = tmp_path / "dev.jsonl"
    good = Prediction("d1", "d1-0", 0, "Ada", "So be it.", None, "mad", {"joyful": 0.0, "mad": 1.0, "sad": 0.0})
    write_predictions(path, [good, good])
    lines = [record for _, record in read_json_lines(path)]
    write_json_lines(path, [lines[0], lines[1] | change])

    with pytest.raises(DataError, match=re.escape(message)):
        read_predictions(path, LABELS)
