"""Damaged corpora are read rightly or refused with their place: some hundred of what the tool tries by the thousand."""

from dataclasses import replace
from random import Random

import pytest
from erckit.data.corpus import read_corpus
from erckit.data.errors import DataError

from tests.tools import fuzz_corpora
from tests.tools.corpus_forms import FORMS, PAIRED
from tests.tools.fuzz_corpora import try_case, try_cases


def test_a_damaged_corpus_is_read_rightly_or_refused_with_its_place(tmp_path):
    outcomes = list(try_cases(range(300), seed=2, folder=tmp_path / "corpus"))

    assert [outcome for outcome in outcomes if outcome.wrong] == []
    assert {(outcome.form, outcome.kind) for outcome in outcomes} == {
        (form, kind) for form in (*FORMS, *PAIRED) for kind in ("the same", "other", "refused")
    }


def lose_an_utterance(corpus):
    first, *others = corpus.dialogues["test"]
    shorter = replace(first, utterances=first.utterances[1:])
    return replace(corpus, dialogues=corpus.dialogues | {"test": (shorter, *others)})


def invent_an_utterance(corpus):
    first, *others = corpus.dialogues["test"]
    longer = replace(first, utterances=(*first.utterances, replace(first.utterances[0], id="new", text="Never said.")))
    return replace(corpus, dialogues=corpus.dialogues | {"test": (longer, *others)})


def tear_a_dialogue_apart(corpus):
    first, *others = corpus.dialogues["test"]
    halves = (replace(first, utterances=first.utterances[:3]), replace(first, utterances=first.utterances[3:], id="2"))
    return replace(corpus, dialogues=corpus.dialogues | {"test": (*halves, *others)})


def change_another_split(corpus):
    return replace(corpus, dialogues=corpus.dialogues | {"dev": corpus.dialogues["dev"][1:]})


def fail_without_a_place(corpus):
    raise DataError("something is wrong")


def crash(corpus):
    raise KeyError("utterances")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lose_an_utterance, "lost without a word"),
        (invent_an_utterance, "1 utterances of 0 damaged lines"),
        (tear_a_dialogue_apart, "was torn apart or disordered"),
        (change_another_split, "dev is another, and test was damaged"),
        (fail_without_a_place, "no line of test_sent_emo.csv is named: something is wrong"),
        (crash, "KeyError: 'utterances'"),
    ],
)
def test_the_judge_sees_what_no_reader_may_do(tmp_path, monkeypatch, fault, message):
    """A file that loses its last line only, read wrongly."""
    calls = []

    def misread(folder, form):
        calls.append(form)
        return read_corpus(folder, form) if len(calls) == 1 else fault(read_corpus(folder, form))

    monkeypatch.setattr(fuzz_corpora, "read_corpus", misread)
    monkeypatch.setattr(fuzz_corpora, "damage", lambda random, data, form: data[: data[:-1].rindex(b"\n") + 1])
    random = Random(0)
    monkeypatch.setattr(random, "choice", lambda options: options[-1])

    assert message in try_case(random, "meld-csv", tmp_path).wrong
