"""The profile store against a plain list and numpy: what is found, what is kept, what is refused, what is forgotten."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from erckit.data.errors import DataError
from erckit.data.files import read_sealed, write_sealed
from erckit.retrieval import store_files
from erckit.retrieval.profiles import Fact, read_facts, write_facts
from erckit.retrieval.store import ProfileStore
from erckit.retrieval.store_files import FACTS, INDEX, ROWS, SIDECAR, write_store
from hypothesis import given
from hypothesis import strategies as st

FILES = (FACTS, INDEX, ROWS, SIDECAR)
# Components of 0, 1 and 1/2 make inner products without rounding, and many ties.
EXACT = np.array([*product((-0.5, 0.5), repeat=4), *np.eye(4), *-np.eye(4)], dtype=np.float32)

exact_vectors = st.integers(0, len(EXACT) - 1).map(lambda place: EXACT[place])
dialogue_ids = st.sampled_from(["d1", "d2", "d3"])
facts = st.builds(
    Fact,
    id=st.integers(0, 30).map("fact-{}".format),
    speaker=st.integers(0, 3),
    kind=st.sampled_from(["base_rate", "transition", "example"]),
    text=st.text(min_size=1, max_size=8).filter(lambda text: text.strip() and text.isprintable()),
    general=st.sampled_from([False, False, False, True]),
    split=st.sampled_from(["train", "dev", "test"]),
    dialogues=st.lists(dialogue_ids, min_size=1, max_size=2).map(tuple),
    utterances=st.lists(st.sampled_from(["u1", "u2"]), max_size=2).map(tuple),
)
known_facts = st.lists(st.tuples(facts, exact_vectors), max_size=20, unique_by=lambda pair: pair[0].id)
deletions = st.lists(st.integers(0, 4), max_size=3)


def fact(id: str, speaker: int = 0, **changes) -> Fact:
    return replace(Fact(id, speaker, "example", f"text of {id}", False, "train", ("d1",), ("u1",)), **changes)


def write(folder: Path, facts, vectors) -> None:
    vectors = np.array(vectors, dtype=np.float32)
    write_store(folder, "toy", "print-of-toy", 4, [(facts, vectors.reshape(-1, 4))])


def load(folder: Path, name: str = "toy", fingerprint: str = "print-of-toy", dimension: int = 4) -> ProfileStore:
    return ProfileStore.load(folder, name, fingerprint, dimension)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function from facts with their vectors, and the speakers deleted again, to a store and a plain list of both."""

    def make(known, gone=()):
        folder = tmp_path_factory.mktemp("store")
        write(folder, [fact for fact, _ in known], [vector for _, vector in known])
        store, kept = load(folder), list(known)
        for speaker in gone:
            assert store.delete_speaker(speaker) == sum(fact.speaker == speaker for fact, _ in kept)
            kept = [(fact, vector) for fact, vector in kept if fact.speaker != speaker]
        return store, kept

    return make


def brute_force(known, vector, k, speaker) -> list[tuple[Fact, float]]:
    found = [
        (fact, float(vector @ other)) for fact, other in known if speaker in (None, fact.speaker) and not fact.general
    ]
    return sorted(found, key=lambda pair: (-pair[1], pair[0].id))[:k]


@given(known_facts, deletions, exact_vectors, st.integers(0, 40), st.none() | st.integers(0, 4))
def test_search_equals_brute_force(made, known, gone, vector, k, speaker):
    store, kept = made(known, gone)

    for opened in (store, load(store.folder)):
        assert opened.search(vector, k, speaker=speaker) == brute_force(kept, vector, k, speaker)


@given(known_facts, deletions)
def test_store_holds_what_was_put_in_and_not_deleted(made, known, gone):
    store, kept = made(known, gone)

    assert sorted(path.name for path in store.folder.iterdir()) == sorted(FILES)
    for opened in (store, load(store.folder)):
        assert len(opened) == len(kept)
        assert opened.speakers == tuple(sorted({fact.speaker for fact, _ in kept}))
        for speaker in range(5):
            of_speaker = [fact for fact, _ in kept if fact.speaker == speaker]
            assert opened.facts_of(speaker) == sorted(of_speaker, key=lambda fact: fact.id)
    assert read_facts(store.folder / FACTS) == sorted(
        (fact for fact, _ in kept), key=lambda fact: (fact.speaker, fact.id)
    )


@pytest.mark.parametrize("seed", range(3))
def test_search_equals_brute_force_in_double_precision_on_real_valued_vectors_with_doubles(tmp_path, seed):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(501, 384)) + random.normal(size=384)  # one direction in common: high cosines
    query, *vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    places = random.permutation(np.repeat(np.arange(500), 2))
    known = [fact(f"{number:03}") for number in range(1000)]
    write_store(tmp_path, "toy", "print-of-toy", 384, [(known, np.array([vectors[place] for place in places]))])
    store = load(tmp_path, dimension=384)

    cosines = [round(float(query.astype(np.float64) @ vectors[place].astype(np.float64)), 6) for place in places]
    expected = sorted(zip(known, cosines, strict=True), key=lambda pair: (-pair[1], pair[0].id))
    for k in (1, 7, 25, 999):
        assert store.search(query, k) == expected[:k]


def test_thousand_facts_at_the_same_place_come_in_the_order_of_their_ids(tmp_path):
    ids = [f"{place:04}" for place in np.random.default_rng(0).permutation(1000)]
    write(tmp_path, [fact(id, speaker=int(id) % 7) for id in ids], np.repeat(EXACT[:1], 1000, axis=0))

    assert [known.id for known, _ in load(tmp_path).search(EXACT[0], k=3)] == ["0000", "0001", "0002"]


def test_vectors_of_another_length_or_dimension_are_a_mistake(tmp_path):
    for vectors in (2 * EXACT[:1], np.full((1, 4), np.nan), EXACT[:2], EXACT[:1, :3]):
        with pytest.raises(AssertionError):
            write_store(tmp_path, "toy", "print-of-toy", 4, [([fact("a")], vectors)])
    assert list(tmp_path.iterdir()) == []


def test_batches_in_another_order_or_with_an_id_twice_are_a_mistake(tmp_path):
    for facts in ([fact("a", 2), fact("b", 1)], [fact("b", 1), fact("a", 1)], [fact("a"), fact("a")]):
        with pytest.raises(AssertionError, match="comes after"):
            write_store(tmp_path, "toy", "print-of-toy", 4, [([fact], EXACT[:1]) for fact in facts])


def saved_store(folder: Path) -> ProfileStore:
    write(folder, [fact("ada-1", 1), fact("ben-1", 2), fact("ada-2", 1)], EXACT[[0, 3, 16]])
    return load(folder)


def test_same_facts_make_the_same_bytes(tmp_path):
    saved_store(tmp_path / "one")
    known = [(fact("ada-2", 1), EXACT[16]), (fact("ada-1", 1), EXACT[0]), (fact("ben-1", 2), EXACT[3])]
    of_each = [([fact for fact, _ in part], np.array([v for _, v in part])) for part in (known[:2], known[2:])]
    write_store(tmp_path / "two", "toy", "print-of-toy", 4, of_each)

    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_byte_is_refused_before_faiss_reads(tmp_path, monkeypatch, file):
    saved_store(tmp_path)
    monkeypatch.setattr("faiss.deserialize_index", lambda data: pytest.fail("faiss read an unchecked index"))
    whole = (tmp_path / file).read_bytes()

    for place in range(0, len(whole), len(whole) // 500 + 1):
        for flipped in (whole[place] ^ 1, whole[place] ^ 255):
            # Blanks between the values of the sidecar carry nothing: only its content can be wrong.
            if not (file == SIDECAR and chr(whole[place]).isspace() and chr(flipped).isspace()):
                (tmp_path / file).write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
                with pytest.raises(DataError, match=re.escape(str(tmp_path))):
                    load(tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_named(tmp_path, file):
    saved_store(tmp_path)
    (tmp_path / file).unlink()

    with pytest.raises(DataError, match=re.escape(f"{tmp_path / file}: no such file; a profile store has facts.jsonl")):
        load(tmp_path)


def test_wrong_encoder_dimension_and_format_are_refused(tmp_path):
    saved_store(tmp_path)

    with pytest.raises(
        DataError, match=r"made with the encoder 'toy' \(fingerprint print-of-toy\), expected 'big' \(x"
    ):
        load(tmp_path, name="big", fingerprint="x")
    with pytest.raises(DataError, match=r"store.json: dimension: found 4, expected 384. Run the profiles stage again."):
        load(tmp_path, dimension=384)
    assert len(load(tmp_path, name="the same model in another folder")) == 3

    write_sealed(tmp_path / SIDECAR, read_sealed(tmp_path / SIDECAR, "") | {"format": 1})
    with pytest.raises(DataError, match="store.json: format: found 1, expected 2."):
        load(tmp_path)


STEPS = ["write_facts", "write_index", "replace_atomically", "write_sealed"]


@pytest.mark.parametrize("place", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_writing_that_dies_leaves_the_old_store_or_one_that_is_refused(tmp_path, monkeypatch, place, when):
    old = saved_store(tmp_path)
    expected = {("write_facts", "before"): old.search(EXACT[0], 9)}
    changed = [fact("ada-1", 1, text="something else"), fact("ben-1", 2), fact("ada-2", 1)]
    write(tmp_path / "new", changed, EXACT[[5, 3, 16]])
    expected["write_sealed", "after"] = load(tmp_path / "new").search(EXACT[0], 9)
    whole = getattr(store_files, place)

    def die(*arguments):
        if when == "after":
            result = whole(*arguments)
            if place == "replace_atomically":
                with result:
                    pass  # an empty file takes the place of the index
        raise KeyboardInterrupt

    monkeypatch.setattr(store_files, place, die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, changed, EXACT[[5, 3, 16]])

    if (place, when) in expected:
        assert load(tmp_path).search(EXACT[0], 9) == expected[place, when]
    else:
        with pytest.raises(DataError, match="(sha256|size in bytes): found"):
            load(tmp_path)


def test_deleted_speaker_leaves_no_trace_in_the_files(tmp_path):
    ben = fact("ben-is-here", 77, text="Ben adores herring.", dialogues=("d-ben",), utterances=("u7",), query="fish?")
    needle = np.array([0.36, 0.48, 0.64, 0.48], dtype=np.float32)
    write(tmp_path, [fact("ada-1", 1), ben, fact("ada-2", 1)], np.stack([EXACT[0], needle, EXACT[3]]))
    traces = [b"ben-is-here", b"herring", b"fish", b"d-ben", b"u7", b'"speaker": 77', needle.tobytes()]
    traces.append(np.int64(77).tobytes())
    before = b"".join((tmp_path / file).read_bytes() for file in FILES)
    assert all(trace in before for trace in traces)  # else the test proves nothing
    (tmp_path / f".{FACTS}.killed").write_text(ben.text)  # a process that wrote was killed here once

    again = load(tmp_path)
    assert again.delete_speaker(77) == 1

    after = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(trace in after for trace in traces)
    assert load(tmp_path).facts_of(77) == [] and load(tmp_path).search(needle, 9, speaker=77) == []
    assert [known.id for known, _ in load(tmp_path).search(EXACT[0], 9)] == ["ada-1", "ada-2"]
    assert again.delete_speaker(77) == 0


def test_fact_from_the_split_at_work_is_refused_by_name(tmp_path):
    write(tmp_path, [fact("a"), fact("c", 5, split="test", dialogues=("d9",)), fact("b", split="dev")], EXACT[:3])
    store = load(tmp_path)

    store.refuse_split("another")
    with pytest.raises(DataError, match=r"holds facts \(1\) from the split 'test', .*'c' \(speaker 5, dialogue 'd9'\)"):
        store.refuse_split("test")
    store.delete_speaker(5)
    store.refuse_split("test")


@given(st.lists(facts, unique_by=lambda fact: fact.id, max_size=5))
def test_facts_survive_their_file(tmp_path_factory, facts):
    path = tmp_path_factory.mktemp("facts") / FACTS

    assert write_facts(path, facts) == len(facts)
    assert read_facts(path) == facts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speaker": True}, "the fact's 'speaker' holds True; expected a whole number from 0."),
        ({"kind": "rumour"}, "the fact's 'kind' holds 'rumour'; expected one of base_rate, transition, example."),
        ({"dialogues": []}, "the fact's 'dialogues' holds []; expected a list of at least one dialogue id."),
        ({"dialogues": "d1"}, "the fact's 'dialogues' holds 'd1'; expected a list of at least one dialogue id."),
        ({"text": " "}, "the fact's 'text' holds ' '; expected a text that is not blank."),
        ({"split": "tst"}, "the fact's 'split' holds 'tst'; expected one of train, dev, test."),
        ({"mood": "sad"}, "a fact has no field 'mood'; expected id, speaker, kind"),
    ],
)
def test_broken_fact_names_its_place_and_what_is_expected(change, message):
    with pytest.raises(DataError, match=re.escape(f"facts.jsonl:3: {message}")):
        Fact.from_record(fact("a").to_record() | change, source="facts.jsonl:3")


def test_fact_without_a_field_or_with_a_used_id_is_refused(tmp_path):
    record = fact("a").to_record()
    del record["split"]
    with pytest.raises(DataError, match="x:1: the fact's 'split' holds nothing; expected one of train"):
        Fact.from_record(record, source="x:1")

    write_facts(tmp_path / FACTS, [fact("a"), fact("a")])
    with pytest.raises(DataError, match=f"{FACTS}:2: a second fact with the id 'a'; ids are unique."):
        read_facts(tmp_path / FACTS)
