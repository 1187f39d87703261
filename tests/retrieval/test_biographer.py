"""The biographer: leaving a dialogue out equals never having read it, and its sentences follow from the counts."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from erckit.data.corpus import read_corpus
from erckit.data.dialogue import Corpus, Dialogue, Utterance
from erckit.data.labels import LabelSet
from erckit.data.speakers import SpeakerRegistry, identify_speakers
from erckit.retrieval.biographer import FEWEST, StatisticalBiographer
from erckit.retrieval.store import ProfileStore
from erckit.retrieval.store_files import write_store

LABELS = LabelSet(("joyful", "mad", "neutral", "sad"))
# Nothing here depends on what vectors mean, so they are drawn.
DIMENSION = 12


def draw_vectors(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def sample() -> tuple[Corpus, SpeakerRegistry]:
    return identify_speakers(read_corpus(Path(str(files("erckit.data") / "sample"))), {})


@pytest.fixture(scope="module")
def train(sample) -> tuple[Dialogue, ...]:
    return sample[0].dialogues["train"]


@pytest.fixture(scope="module")
def vectors(train) -> np.ndarray:
    return draw_vectors(sum(len(dialogue.utterances) for dialogue in train), seed=1)


def pair_vectors(dialogues: Sequence[Dialogue], vectors: np.ndarray) -> Iterator[tuple[Dialogue, np.ndarray]]:
    ends = np.cumsum([len(dialogue.utterances) for dialogue in dialogues])
    yield from zip(dialogues, np.split(vectors, ends[:-1]), strict=True)


def biographer_of(
    sample: tuple[Corpus, SpeakerRegistry], dialogues: Sequence[Dialogue], vectors: np.ndarray
) -> StatisticalBiographer:
    corpus, speakers = sample
    prototypes = draw_vectors(len(corpus.labels), seed=2)
    read = pair_vectors(dialogues, vectors)
    return StatisticalBiographer(read, prototypes, corpus.labels, speakers, examples_per_emotion=2)


@pytest.fixture(scope="module")
def biographer(sample, train, vectors) -> StatisticalBiographer:
    return biographer_of(sample, train, vectors)


def one_left_out(
    train: Sequence[Dialogue], vectors: np.ndarray
) -> Iterator[tuple[Dialogue, list[Dialogue], np.ndarray]]:
    """Yield each dialogue, all others, and the vectors of those."""
    start = 0
    for place, dialogue in enumerate(train):
        end = start + len(dialogue.utterances)
        yield dialogue, [*train[:place], *train[place + 1 :]], np.concatenate([vectors[:start], vectors[end:]])
        start = end


def test_leaving_a_dialogue_out_equals_never_having_read_it(sample, train, vectors, biographer):
    queries = draw_vectors(3, seed=3)
    told = 0
    for dialogue, others, rest in one_left_out(train, vectors):
        without = biographer_of(sample, others, rest)
        for speaker in (speaker.name for speaker in sample[1]):
            facts = without.write_facts(speaker)
            expected = [fact.text for fact in facts if fact.general] if facts else None
            assert biographer.general(speaker, without=dialogue) == expected
            for query in queries:
                found = biographer.nearest(speaker, query, 3, without=dialogue)
                assert found == without.nearest(speaker, query, 3, without=None)
                assert all(fact.dialogues != (dialogue.id,) for fact, _ in found)
            told += biographer.general(speaker, without=dialogue) != biographer.general(speaker, without=None)
    assert told > 50  # it does matter what is left out


@pytest.mark.parametrize("told", [1, 3])
def test_no_more_examples_are_kept_than_can_be_told(told):
    """A sequence of dialogues long enough that examples are dropped on the way, half of them in one dialogue."""
    turns = [6] * 30 + [90] + [6] * 30
    dialogues = [
        Dialogue(
            f"d{place}", tuple(Utterance(f"d{place}-{turn}", ("Ada",), "I say so.", "mad") for turn in range(count))
        )
        for place, count in enumerate(turns)
    ]
    corpus = Corpus("hand", "erckit-jsonl", LABELS, {"train": tuple(dialogues), "dev": (), "test": ()})
    vectors, prototypes, query = draw_vectors(sum(turns), 10), draw_vectors(len(LABELS), 11), draw_vectors(1, 12)[0]
    speakers = identify_speakers(corpus, {})[1]
    biographer = StatisticalBiographer(pair_vectors(dialogues, vectors), prototypes, LABELS, speakers, told)

    similarity = vectors @ prototypes.T
    leads = similarity[:, 1] - (similarity.sum(axis=1) - similarity[:, 1]) / (len(LABELS) - 1)
    said = [(dialogue, u.id) for dialogue in dialogues for u in dialogue.utterances]
    ranked = [said[row] for row in np.argsort(-leads)]
    for left_out in [None, *dialogues]:
        expected = [id for dialogue, id in ranked if dialogue is not left_out][:told]
        found = biographer.nearest("Ada", query, told, without=left_out)
        assert sorted(fact.utterances[0] for fact, _ in found) == sorted(expected)
    kept = sum(map(len, biographer._examples.values()))
    assert kept < told + max(turns) and kept < sum(turns) / 3


def test_the_store_finds_what_the_biographer_finds_with_nothing_left_out(sample, train, vectors, biographer, tmp_path):
    rows = {u.id: row for row, u in enumerate(u for dialogue in train for u in dialogue.utterances)}
    facts = [fact for speaker in sample[1] for fact in biographer.write_facts(speaker.name)]
    found_by = [vectors[rows[fact.utterances[0]]] if fact.utterances else vectors[0] for fact in facts]
    write_store(tmp_path, "drawn", "print-of-drawn", DIMENSION, [(facts, np.array(found_by))])
    store = ProfileStore.load(tmp_path, "drawn", "print-of-drawn", DIMENSION)

    assert len(store) > 100
    for speaker in sample[1]:
        facts = store.facts_of(speaker.id)
        known = [fact.text for fact in facts if fact.general] if facts else None
        assert known == biographer.general(speaker.name, without=None)
        for query in draw_vectors(5, seed=4):
            found = store.search(query, 3, speaker=speaker.id)
            expected = biographer.nearest(speaker.name, query, 3, without=None)
            assert [fact for fact, _ in found] == [fact for fact, _ in expected]
            assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=2e-6)


def test_facts_say_where_they_come_from(sample, train, biographer):
    spoken = {u.id: (dialogue.id, u) for dialogue in train for u in dialogue.utterances}
    for speaker in sample[1]:
        for fact in biographer.write_facts(speaker.name):
            assert (fact.speaker, fact.split) == (speaker.id, "train")
            if fact.general:
                assert fact.dialogues == tuple(
                    sorted(d.id for d in train if any(speaker.name in u.speakers for u in d.utterances))
                )
            else:
                dialogue, utterance = spoken[fact.utterances[0]]
                assert fact.dialogues == (dialogue,) and speaker.name in utterance.speakers
                assert fact.query == utterance.text
                assert fact.text == f"Once {utterance.label}, {speaker.name} said: {utterance.text}"


def test_an_emotion_is_shown_by_the_utterances_nearest_to_it_alone(sample, train, vectors, biographer):
    corpus, _ = sample
    prototypes = draw_vectors(len(corpus.labels), seed=2)
    spoken = [u for dialogue in train for u in dialogue.utterances]

    def lead(row: int, label: str) -> float:
        similarity = {name: float(vectors[row] @ prototypes[corpus.labels.index(name)]) for name in corpus.labels}
        others = [value for name, value in similarity.items() if name != label]
        return similarity[label] - sum(others) / len(others)

    facts = [fact for fact in biographer.write_facts("Tom Bellweather") if not fact.general]
    for label in corpus.labels:
        rows = [
            row
            for row, u in enumerate(spoken)
            if u.label == label and "Tom Bellweather" in u.speakers and 3 <= len(u.text.split()) <= 25
        ]
        best = sorted(rows, key=lambda row: -lead(row, label))[:2]
        assert [f.utterances[0] for f in facts if f.text.startswith(f"Once {label},")] == [
            spoken[row].id for row in best
        ]


# Hand-computed cases: one speaker a letter, one emotion a letter.
EMOTIONS = {"j": "joyful", "m": "mad", "n": "neutral", "s": "sad", "-": None}
PEOPLE = {"A": "Ada", "B": "Ben"}


def tell(*dialogues: str, without: int | None = None) -> list[str] | None:
    """What is told of Ada in general, of dialogues written like "Aj Bm A-": who speaks, and what they feel."""
    told = tuple(
        Dialogue(
            f"d{place}",
            tuple(
                Utterance(f"d{place}-{turn}", (PEOPLE[turn_[0]],), "I say so.", EMOTIONS[turn_[1]])
                for turn, turn_ in enumerate(turns.split())
            ),
        )
        for place, turns in enumerate(dialogues)
    )
    corpus = Corpus("hand", "erckit-jsonl", LABELS, {"train": told, "dev": (), "test": ()})
    speakers = identify_speakers(corpus, {})[1]
    vectors = draw_vectors(sum(len(dialogue.utterances) for dialogue in told), seed=5)
    prototypes = draw_vectors(len(LABELS), seed=6)
    biographer = StatisticalBiographer(pair_vectors(told, vectors), prototypes, LABELS, speakers, 1)
    return biographer.general("Ada", without=None if without is None else told[without])


def repeat(turn: str, count: int) -> str:
    return " ".join([turn] * count)


def test_base_rates_by_hand():
    # Others: (10, 2, 0, 0) utterances, one more each: 11/16, 3/16, 1/16, 1/16.
    # Ada: (0, 8, 0, 4) and 20 more at those rates, of 32: joyful 13.75/32, mad 11.75/32, neutral 1.25/32, sad 5.25/32.
    # Ratios: joyful 0.63, mad 1.96, neutral 0.63, sad 2.63. Sad departs most, then mad; joyful is
    # rarer, and so is neutral, which nobody ever felt: that says nothing of Ada.
    told = tell(" ".join([repeat("Am", 8), repeat("As", 4)]), " ".join([repeat("Bj", 10), repeat("Bm", 2)]))

    assert told[0] == "Ada is mostly mad and sad, more often sad and mad than others, less often joyful."


def test_a_rate_near_that_of_others_is_not_called_different():
    # Both the same, 8 joyful, 4 mad, 2 neutral, 2 sad: smoothed, Ada's ratios are 1.05, 1.00, 0.93, 0.93.
    turns = [" ".join(who + emotion for emotion in "jjjjjjjjmmmmnnss") for who in "AB"]

    assert tell(*turns)[0] == "Ada is mostly joyful and mad."


def test_what_was_never_felt_is_not_said_to_be_usual():
    others = " ".join([repeat("Bj", 12), repeat("Bm", 4)])

    assert tell(repeat("Aj", 12), others)[0].startswith("Ada is mostly joyful, ")


def test_under_a_fewest_number_of_utterances_nothing_is_stated():
    assert FEWEST == 10
    assert tell(repeat("Aj", 9) + " A- A-") == []
    assert tell(repeat("Aj", 10)) != []
    assert tell(repeat("Aj", 9), "Aj", without=1) == []


def test_own_course_by_hand():
    # Ada's pairs, from 10 times "Am As Aj Aj" in a dialogue each: mad-sad 10, sad-joyful 10, joyful-joyful 10.
    # Base (a count more each, of 34): joyful 21, mad 1, neutral 1, sad 11. After mad, with 20 at these, of 30:
    # sad 16.47/30 against 11/34, ratio 1.70. After sad or joyful: joyful 22.35/30 against 21/34, ratio 1.21.
    # Evidence: 10 ln 1.70 = 5.3 for mad-sad, 10 ln 1.21 = 1.9 for the others.
    assert tell(*["Am As Aj Aj"] * 10)[1:] == ["Once mad, Ada soon turns sad."]
    # With one dialogue less no pair is seen ten times.
    assert tell(*["Am As Aj Aj"] * 10, without=0)[1:] == []


def test_staying_as_one_is_has_words_of_its_own():
    told = tell(*[" ".join([repeat("Am", 8), "Bj"])] * 3, *[" ".join([repeat("Aj", 8), "Bj"])] * 3)

    # Both emotions last equally: the first in the alphabet is told.
    assert told[-1] == "Once joyful, Ada tends to stay joyful."


def test_contagion_is_of_the_utterance_right_before_by_somebody_else():
    # Twelve times Ben is mad and Ada turns sad, twelve times he is joyful and she is joyful too.
    general = tell(*["Bm As"] * 12, *["Bj Aj"] * 12)

    # Both are equally often; she speaks once a dialogue, so she has no course of her own.
    assert general[1:] == ["When others are joyful, Ada is often joyful."]
    # An utterance between them without an emotion, or one of her own, ends it.
    assert len(tell(*["Bm B- As"] * 12, *["Bj B- Aj"] * 12)) == 1
    assert len(tell(*["Bm A- As"] * 12, *["Bj A- Aj"] * 12)) == 1


def test_neutral_is_no_course_to_tell():
    assert tell(*["An An An An Aj"] * 12)[1:] == []


def test_examples_are_of_three_to_twenty_five_words_with_an_emotion():
    texts = ["so so", "so so so", " ".join(["so"] * 25), " ".join(["so"] * 26)]
    utterances = [Utterance(f"d-{turn}", ("Ada",), text, "mad") for turn, text in enumerate(texts)]
    unlabelled = Utterance("d-9", ("Ada",), "nobody says how I feel", None)
    dialogue = Dialogue("d", (*utterances, unlabelled))
    speakers = identify_speakers(Corpus("hand", "erckit-jsonl", LABELS, {"train": (dialogue,)}), {})[1]

    biographer = StatisticalBiographer([(dialogue, draw_vectors(5, 7))], draw_vectors(4, 8), LABELS, speakers, 9)
    assert {fact.utterances[0] for fact in biographer.write_facts("Ada")} == {"d-1", "d-2"}


def test_a_stranger_has_no_facts(sample, train, biographer):
    speakers = {name for dialogue in train for u in dialogue.utterances for name in u.speakers}
    strangers = [speaker.name for speaker in sample[1] if speaker.name not in speakers]

    assert strangers and not any(speaker.seen for speaker in sample[1] if speaker.name in strangers)
    for name in strangers:
        assert biographer.write_facts(name) == []
        assert biographer.general(name, without=None) is None
        assert biographer.nearest(name, draw_vectors(1, 9)[0], 3, without=None) == []
