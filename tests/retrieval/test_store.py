"""The profile store against a plain list and numpy: what is found, what is kept, what is refused, what is forgotten."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from erckit.data.errors import DataError
from erckit.data.files import read_json, write_json
from erckit.retrieval import store as store_module
from erckit.retrieval.profiles import Fact, read_facts, write_facts
from erckit.retrieval.store import FACTS, INDEX, SIDECAR, ProfileStore
from hypothesis import given
from hypothesis import strategies as st

FILES = (FACTS, INDEX, SIDECAR)
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
upserts = st.lists(st.tuples(facts, exact_vectors), max_size=12)
deletions = st.integers(0, 3)
histories = st.lists(upserts | upserts | deletions, max_size=6)


def fact(id: str, speaker: int = 0, **changes) -> Fact:
    return replace(Fact(id, speaker, "example", f"text of {id}", False, "train", ("d1",), ("u1",)), **changes)


def empty_store() -> ProfileStore:
    return ProfileStore.empty("toy", "print-of-toy", dimension=4)


def load(folder: Path, name: str = "toy", fingerprint: str = "print-of-toy", dimension: int = 4) -> ProfileStore:
    return ProfileStore.load(folder, name, fingerprint, dimension)


def replay(history) -> tuple[ProfileStore, dict[str, tuple[Fact, np.ndarray]]]:
    """The store after a history of upserts and deletions, and the same as a plain dict by fact id."""
    store, oracle = empty_store(), {}
    for step in history:
        if isinstance(step, int):
            gone = [id for id, (known, _) in oracle.items() if known.speaker == step]
            assert store.delete_speaker(step) == len(gone)
            oracle = {id: pair for id, pair in oracle.items() if id not in gone}
        else:
            store.upsert([known for known, _ in step], np.array([v for _, v in step], dtype=np.float32).reshape(-1, 4))
            oracle |= {known.id: (known, v) for known, v in step}
    return store, oracle


def brute_force(oracle, vector, k, speaker) -> list[tuple[Fact, float]]:
    found = [
        (known, float(vector @ other))
        for known, other in oracle.values()
        if speaker in (None, known.speaker) and not known.general
    ]
    return sorted(found, key=lambda pair: (-pair[1], pair[0].id))[:k]


@given(histories, exact_vectors, st.integers(0, 40), st.none() | st.integers(0, 4))
def test_search_equals_brute_force(history, vector, k, speaker):
    store, oracle = replay(history)

    found = store.search(vector, k, speaker=speaker)

    assert found == brute_force(oracle, vector, k, speaker)


@given(histories)
def test_store_holds_what_was_put_in_and_not_deleted(history):
    store, oracle = replay(history)
    known = [pair[0] for pair in oracle.values()]

    assert len(store) == len(known)
    assert store.speakers == tuple(sorted({fact.speaker for fact in known}))
    for speaker in range(5):
        of_speaker = [fact for fact in known if fact.speaker == speaker]
        assert store.facts_of(speaker) == sorted(of_speaker, key=lambda fact: fact.id)


@pytest.mark.parametrize("seed", range(3))
def test_search_equals_brute_force_in_double_precision_on_real_valued_vectors_with_doubles(seed):
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(501, 384)) + random.normal(size=384)  # one direction in common: high cosines
    query, *vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    places = random.permutation(np.repeat(np.arange(500), 2))
    store = ProfileStore.empty("toy", "print-of-toy", dimension=384)
    known = [fact(f"{number:03}") for number in range(1000)]
    store.upsert(known, np.array([vectors[place] for place in places]))

    cosines = [round(float(query.astype(np.float64) @ vectors[place].astype(np.float64)), 6) for place in places]
    expected = sorted(zip(known, cosines, strict=True), key=lambda pair: (-pair[1], pair[0].id))
    for k in (1, 7, 25, 999):
        assert store.search(query, k) == expected[:k]


def test_thousand_facts_at_the_same_place_come_in_the_order_of_their_ids():
    store = empty_store()
    ids = [f"{place:04}" for place in np.random.default_rng(0).permutation(1000)]
    store.upsert([fact(id) for id in ids], np.repeat(EXACT[:1], 1000, axis=0))

    assert [known.id for known, _ in store.search(EXACT[0], k=3)] == ["0000", "0001", "0002"]


def test_vectors_of_another_length_or_dimension_are_a_mistake():
    for vectors in (2 * EXACT[:1], np.full((1, 4), np.nan), EXACT[:2], EXACT[:1, :3]):
        with pytest.raises(AssertionError):
            empty_store().upsert([fact("a")], vectors)


@given(histories, exact_vectors)
def test_save_and_load_change_nothing(tmp_path_factory, history, vector):
    folder = tmp_path_factory.mktemp("store")
    store, oracle = replay(history)
    store.save(folder)

    again = load(folder)

    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert len(again) == len(store) and again.speakers == store.speakers
    assert again.search(vector, 40) == brute_force(oracle, vector, 40, None)
    again.upsert([fact("new")], EXACT[:1])  # a loaded store can be worked on
    oracle["new"] = (fact("new"), EXACT[0])
    assert again.search(vector, 40) == brute_force(oracle, vector, 40, None)


def saved_store(folder: Path) -> ProfileStore:
    store = empty_store()
    store.upsert([fact("ada-1", 1), fact("ben-1", 2), fact("ada-2", 1)], EXACT[[0, 3, 16]])
    store.save(folder)
    return store


def test_same_facts_make_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        saved_store(tmp_path / name)

    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_byte_is_refused_before_faiss_reads(tmp_path, monkeypatch, file):
    saved_store(tmp_path)
    monkeypatch.setattr("faiss.read_index", lambda path: pytest.fail("faiss read an unchecked index"))
    whole = (tmp_path / file).read_bytes()

    for place in range(len(whole)):
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

    write_json(tmp_path / SIDECAR, read_json(tmp_path / SIDECAR) | {"format": 2})
    with pytest.raises(DataError, match="store.json: format: found 2, expected 1."):
        load(tmp_path)


@pytest.mark.parametrize("place", ["write_facts", "replace_atomically", "write_json"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_save_that_dies_leaves_the_old_store_or_one_that_is_refused(tmp_path, monkeypatch, place, when):
    old = saved_store(tmp_path)
    new = load(tmp_path)
    new.upsert([fact("ada-1", 1, text="something else")], EXACT[5:6])
    whole = getattr(store_module, place)

    def die(*arguments):
        if when == "after":
            result = whole(*arguments)
            if place == "replace_atomically":
                with result:
                    pass  # an empty file takes the place of the index
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, place, die)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)

    expected = {("write_facts", "before"): old, ("write_json", "after"): new}.get((place, when))
    if expected is None:
        with pytest.raises(DataError, match="sha256: found"):
            load(tmp_path)
    else:
        assert load(tmp_path).search(EXACT[0], 9) == expected.search(EXACT[0], 9)


def test_deleted_speaker_leaves_no_trace_in_the_files(tmp_path):
    store = empty_store()
    ben = fact("ben-is-here", 77, text="Ben adores herring.", dialogues=("d-ben",), utterances=("u7",), query="fish?")
    needle = np.array([0.36, 0.48, 0.64, 0.48], dtype=np.float32)
    store.upsert([fact("ada-1", 1), ben, fact("ada-2", 1)], np.stack([EXACT[0], needle, EXACT[3]]))
    store.save(tmp_path)
    traces = [b"ben-is-here", b"herring", b"fish", b"d-ben", b"u7", b"77", needle.tobytes()]
    before = b"".join((tmp_path / file).read_bytes() for file in FILES)
    assert all(trace in before for trace in traces)  # else the test proves nothing
    (tmp_path / f".{FACTS}.killed").write_text(ben.text)  # a save was killed here once

    again = load(tmp_path)
    assert again.delete_speaker(77) == 1
    again.save(tmp_path)

    after = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    hashes = re.compile(rb'"[0-9a-f]{64}"')  # a hash may well hold a 77
    assert not any(trace in hashes.sub(b"", after) for trace in traces)
    assert load(tmp_path).facts_of(77) == [] and load(tmp_path).search(needle, 9, speaker=77) == []
    assert [known.id for known, _ in load(tmp_path).search(EXACT[0], 9)] == ["ada-1", "ada-2"]
    assert again.delete_speaker(77) == 0


def test_fact_from_the_split_at_work_is_refused_by_name():
    store = empty_store()
    store.upsert([fact("a"), fact("c", 5, split="test", dialogues=("d9",)), fact("b", split="dev")], EXACT[:3])

    store.refuse_split("another")
    with pytest.raises(DataError, match=r"holds facts \(1\) from the split 'test', .*'c' \(speaker 5, dialogue 'd9'\)"):
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
