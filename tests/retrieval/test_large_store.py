"""A large store: opened without being read, checked where it is used, searched by codes, erased in place."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from erckit.data.errors import DataError
from erckit.retrieval import store_files
from erckit.retrieval.blocks import BLOCK, CheckedFile, hash_blocks
from erckit.retrieval.profiles import Fact
from erckit.retrieval.store import ProfileStore
from erckit.retrieval.store_files import CODES, FACTS, INDEX, ROWS, SIDECAR, write_store
from hypothesis import given
from hypothesis import strategies as st

SPEAKERS, EACH, DIMENSION = 150, 20, 48
RANDOM = np.random.default_rng(1)


def draw(count: int) -> np.ndarray:
    """Vectors of length 1 with much in common, as sentence embeddings have."""
    vectors = RANDOM.normal(size=(count, DIMENSION)) * 0.97 ** np.arange(DIMENSION) + 0.2
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def facts_about(speaker: int) -> list[Fact]:
    return [
        Fact(
            id=f"{speaker:03}:{number:02}",
            speaker=speaker,
            kind="example",
            text=f"Speaker {speaker} likes {'this and that ' * 20}number {number}.",
            general=number < 3,
            split="train",
            dialogues=(f"dialogue-{speaker}-{number}",),
            utterances=(),
        )
        for number in range(EACH)
    ]


KNOWN = [fact for speaker in range(SPEAKERS) for fact in facts_about(speaker)]
VECTORS, QUERIES = draw(len(KNOWN)), draw(40)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of a store of 3,000 facts that takes itself for large; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_files, "LARGE", 2000)
        parts = [slice(0, 1240), slice(1240, len(KNOWN))]
        write_store(folder, "toy", "print", DIMENSION, [(KNOWN[part], VECTORS[part]) for part in parts])
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "store")


def load(folder: Path) -> ProfileStore:
    return ProfileStore.load(folder, "toy", "print", DIMENSION)


def brute_force(query: np.ndarray, k: int, speaker: int | None = None, gone: int | None = None):
    rows = [row for row, f in enumerate(KNOWN) if not f.general and speaker in (None, f.speaker) and f.speaker != gone]
    cosines = (VECTORS[rows].astype(np.float64) @ query.astype(np.float64)).round(6).tolist()
    found = sorted(zip((KNOWN[row] for row in rows), cosines, strict=True), key=lambda pair: (-pair[1], pair[0].id))
    return found[:k]


def test_one_speaker_is_searched_exactly(folder):
    store = load(folder)

    assert len(store) == len(KNOWN) and store.speakers == tuple(range(SPEAKERS))
    for speaker in (0, 61, 62, SPEAKERS - 1):
        assert store.facts_of(speaker) == facts_about(speaker)
        for query in QUERIES[:5]:
            assert store.search(query, 4, speaker=speaker) == brute_force(query, 4, speaker)
    assert store.facts_of(SPEAKERS) == [] and store.search(QUERIES[0], 4, speaker=SPEAKERS) == []


def test_a_search_over_all_finds_almost_all_of_the_nearest_with_their_cosines(folder):
    store, hits = load(folder), 0
    for query in QUERIES:
        found, expected = store.search(query, 10), brute_force(query, len(KNOWN))
        assert found == [pair for pair in expected if pair in found] and len(found) == 10
        hits += len([pair for pair in found if pair in expected[:10]])
    assert 0.95 < hits / (10 * len(QUERIES))
    assert store.search(QUERIES[0], len(KNOWN)) == brute_force(QUERIES[0], len(KNOWN))
    assert store.search(QUERIES[0], 0) == []


def test_opening_reads_neither_facts_nor_vectors_nor_codes_and_nothing_is_used_unchecked(folder):
    for name in (FACTS, INDEX, CODES):
        size = (folder / name).stat().st_size
        (folder / name).write_bytes(bytes(size))
    store = load(folder)

    assert len(store) == len(KNOWN) and store.speakers == tuple(range(SPEAKERS))
    with pytest.raises(DataError, match=re.escape(f"{folder / FACTS}: bytes from 0 on: sha256: found")):
        store.facts_of(0)
    with pytest.raises(DataError, match=re.escape(f"{folder / INDEX}: bytes from 0 on: sha256: found")):
        store.search(QUERIES[0], 3, speaker=1)
    with pytest.raises(DataError, match=re.escape(f"{folder / CODES}: bytes from 0 on: sha256: found")):
        store.search(QUERIES[0], 3)


@pytest.mark.parametrize("name", [FACTS, INDEX])
def test_damage_is_refused_where_it_is_and_nowhere_else(folder, name):
    whole = bytearray((folder / name).read_bytes())
    whole[len(whole) // 2] ^= 1
    (folder / name).write_bytes(whole)
    store, refused = load(folder), []
    for speaker in range(SPEAKERS):
        try:
            assert store.search(QUERIES[0], 3, speaker=speaker) == brute_force(QUERIES[0], 3, speaker)
            assert store.facts_of(speaker) == facts_about(speaker)
        except DataError:
            refused.append(speaker)

    bytes_each = len(whole) / SPEAKERS
    assert SPEAKERS // 2 in refused and len(refused) <= BLOCK / bytes_each + 2
    assert refused == list(range(refused[0], refused[-1] + 1))


@pytest.mark.parametrize("name", [FACTS, INDEX, CODES])
def test_a_file_of_another_size_is_refused_at_once(folder, name):
    size = (folder / name).stat().st_size
    with (folder / name).open("ab") as file:
        file.write(b"x")

    message = f"{folder / name}: size in bytes: found {size + 1}, expected {size}. Run the profiles stage again."
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        load(folder)


def test_a_deleted_speaker_is_gone_from_every_file_and_nobody_else_has_changed(folder):
    gone, rows = 77, slice(77 * EACH, 78 * EACH)
    traces = [b"Speaker 77 ", b"dialogue-77-", b"077:", VECTORS[rows][5].tobytes(), VECTORS[rows][5, 20:30].tobytes()]
    files = {name: (folder / name).read_bytes() for name in (FACTS, INDEX, CODES, ROWS, SIDECAR)}
    assert all(any(trace in content for content in files.values()) for trace in traces)
    store = load(folder)
    store.search(QUERIES[0], 3)  # what it has in memory is forgotten too

    assert store.delete_speaker(gone) == EACH
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    for content in ((folder / name).read_bytes() for name in files):
        assert not any(trace in content for trace in traces)
    assert (folder / CODES).stat().st_size == len(files[CODES]) - (EACH - 3) * DIMENSION // 4  # 4 bits for 2 components
    for opened in (store, load(folder)):
        assert len(opened) == len(KNOWN) - EACH and gone not in opened.speakers and opened.facts_of(gone) == []
        assert opened.search(VECTORS[rows][5], 3, speaker=gone) == []
        assert opened.search(VECTORS[rows][5], len(KNOWN)) == brute_force(VECTORS[rows][5], len(KNOWN), gone=gone)
        for other in (0, 76, 78, SPEAKERS - 1):
            assert opened.facts_of(other) == facts_about(other)
            assert opened.search(QUERIES[0], 4, speaker=other) == brute_force(QUERIES[0], 4, other)


def test_all_speakers_can_be_deleted_one_after_the_other(folder):
    store = load(folder)
    for speaker in np.random.default_rng(0).permutation(SPEAKERS).tolist():
        store.delete_speaker(speaker)

    empty = load(folder)
    assert len(empty) == 0 and empty.speakers == () and empty.search(QUERIES[0], 3) == []
    assert not (folder / FACTS).read_bytes().strip()


def test_a_small_store_in_the_place_of_a_large_one_leaves_nothing_of_it(folder):
    write_store(folder, "toy", "print", DIMENSION, [(KNOWN[:5], VECTORS[:5])])

    assert sorted(path.name for path in folder.iterdir()) == sorted([FACTS, INDEX, ROWS, SIDECAR])
    assert [fact.id for fact, _ in load(folder).search(VECTORS[4], 9)] == ["000:04", "000:03"]


sizes = st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])


@given(st.data(), sizes)
def test_a_stretch_is_refused_exactly_where_it_touches_a_changed_block(tmp_path_factory, data, size):
    path = tmp_path_factory.mktemp("blocks") / "file"
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    hashes = hash_blocks(path)
    changed = data.draw(st.sets(st.integers(0, size - 1), max_size=2)) if size else set()
    for place in changed:
        content[place] ^= 255
    path.write_bytes(content.tobytes())
    file = CheckedFile(path, size, hashes)
    start = data.draw(st.integers(0, max(0, size - 1)))
    stop = data.draw(st.integers(min(start + 1, size), size))

    touched = {place // BLOCK for place in range(start, stop)}
    if touched & {place // BLOCK for place in changed}:
        with pytest.raises(DataError, match="sha256: found"):
            file.read(start, stop)
    else:
        assert (file.read(start, stop) == content[start:stop]).all()
        file.overwrite(start, np.zeros(stop - start, np.uint8))
        content[start:stop] = 0
        assert path.read_bytes() == content.tobytes()
        assert (file.read(start, stop) == 0).all()
        untouched = [block for block in range(len(hashes)) if block not in touched]
        assert (file.hashes[untouched] == hashes[untouched]).all()
        assert changed or (file.hashes == hash_blocks(path)).all()
