"""The prompt tree: what a branch sees, how recent emotions are told, and that a record loses nothing."""

import json
import re

import pytest
from erckit.data.errors import DataError
from erckit.prompts.tree import (
    Branch,
    PromptTree,
    from_record,
    gold_emotions,
    read_aloud,
    recent_emotions,
    to_record,
    unroll,
)
from erckit.prompts.wording import Piece, Wording, read_wording
from hypothesis import given
from hypothesis import strategies as st

BRIEF, INSTRUCT = read_wording("brief"), read_wording("instruct")

pieces = st.lists(st.builds(Piece, text=st.text(), control=st.booleans()), max_size=4).map(tuple)
branches = st.builds(
    Branch,
    utterance=st.text(),
    turn=st.integers(0, 9),
    speaker=st.text(),
    after=st.integers(0, 4),
    facts=pieces,
    recent=st.lists(st.integers(0, 8), max_size=3).map(tuple),
    question=pieces,
    label=st.none() | st.text(),
)
trees = st.builds(
    PromptTree,
    st.text(),
    st.integers(0, 3),
    trunk=pieces,
    spans=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=3).map(tuple),
    branches=st.lists(branches, max_size=4).map(tuple),
)


def branch(turn: int, *, after: int = 0, recent: tuple[int, ...] = (), label: str | None = None) -> Branch:
    fact, question = (Piece(f"<fact {turn}>"),), (Piece(f"<question {turn}>"),)
    return Branch(f"d-{turn}", turn, "Ada", after, fact, recent, question, label)


@given(trees)
def test_a_record_reads_back_equal_after_json(tree):
    assert from_record(json.loads(json.dumps(to_record(tree, BRIEF))), BRIEF, "test.jsonl:1") == tree


def test_a_record_says_which_wording_it_was_made_with():
    assert to_record(PromptTree("d", 0, (), (), ()), BRIEF)["wording"] == BRIEF.hash


@given(st.integers(0, 5), st.integers(0, 5))
def test_an_unrolled_branch_holds_nothing_after_its_utterance_nor_of_other_branches(asked, other):
    trunk = tuple(Piece(f"<turn {turn}>") for turn in range(6))
    spans = tuple((turn, turn + 1) for turn in range(6))
    tree = PromptTree("d", 0, trunk, spans, (branch(asked, after=asked + 1), branch(other, after=other + 1)))

    expected = "".join(f"<turn {turn}>" for turn in range(asked + 1)) + f"<fact {asked}><question {asked}>"
    assert read_aloud(unroll(tree, tree.branches[0], {}, BRIEF)) == expected


@pytest.mark.parametrize(
    ("wording", "told"),
    [
        (BRIEF, " before: mad 1 turn ago, joyful 2 turns ago, sad 7 turns ago."),
        (INSTRUCT, "\nRecent emotions of Ada: 1 turn ago mad, 2 turns ago joyful, 7 turns ago sad."),
    ],
)
def test_recent_emotions_come_latest_first_with_their_distance(wording, told):
    asked = branch(9, recent=(8, 7, 2))

    assert read_aloud(recent_emotions(asked, {2: "sad", 7: "joyful", 8: "mad"}, wording)) == told


def test_recent_emotions_stand_between_facts_and_question():
    asked = branch(9, recent=(8,))

    shown = read_aloud(unroll(PromptTree("d", 0, (), (), (asked,)), asked, {8: "mad"}, BRIEF))
    assert shown == "<fact 9> before: mad 1 turn ago.<question 9>"


@given(st.dictionaries(st.integers(0, 12), st.sampled_from(["mad", "sad"])))
def test_only_emotions_of_recent_turns_are_told_and_only_known_ones(emotions):
    asked = branch(9, recent=(8, 5, 1))
    known = [f"{emotions[turn]} {9 - turn} turn{'s' * (turn < 8)} ago" for turn in (8, 5, 1) if turn in emotions]

    told = read_aloud(recent_emotions(asked, emotions, BRIEF))
    assert told == (f" before: {', '.join(known)}." if known else "")


def test_gold_emotions_are_those_of_all_labelled_branches_by_dialogue():
    trees = [
        PromptTree("a", 0, (), (), (branch(0, label="mad"), branch(1))),
        PromptTree("a", 1, (), (), (branch(2, label="sad"),)),
        PromptTree("b", 0, (), (), (branch(0, label="joyful"),)),
    ]

    assert gold_emotions(trees) == {"a": {0: "mad", 2: "sad"}, "b": {0: "joyful"}}


def test_a_record_of_another_wording_is_refused():
    other = Wording({**BRIEF.templates, "fact": " {fact}!"})
    record = to_record(PromptTree("d", 0, (), (), ()), other)

    message = (
        f"test.jsonl:7: made with the wording {other.hash[:12]}, expected {BRIEF.hash[:12]}. "
        "Run the prompts stage again."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        from_record(record, BRIEF, "test.jsonl:7")


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda record: record["branches"][0].pop("after"), "KeyError('after')"),
        (lambda record: record.pop("wording"), "KeyError('wording')"),
        (lambda record: record.update(trunk=None), "TypeError(\"'NoneType' object is not iterable\")"),
    ],
)
def test_a_broken_record_is_named_with_the_remedy(spoil, found):
    record = to_record(PromptTree("d", 0, (), (), (branch(0),)), BRIEF)
    spoil(record)

    message = f"test.jsonl:7: not a prompt tree ({found}). Run the prompts stage again."
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        from_record(record, BRIEF, "test.jsonl:7")
