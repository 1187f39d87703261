"""The FAISS store: facts, found by the meaning of their text, exactly."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.errors import DataError
from ..data.files import hash_file, hash_record, read_json, replace_atomically, write_json
from .profiles import Fact, read_facts, refuse_split, write_facts

FORMAT = 1
FACTS, INDEX, SIDECAR = "facts.jsonl", "index.faiss", "store.json"
TIE = 1e-5  # cosines nearer than this may be equal: more than the rounding to 6 digits and the error of float32
_REMEDY = "Run the profiles stage again."


class ProfileStore:
    """The facts of all speakers, each with the vector that finds it.

    Vectors have length 1, so that their inner product is the cosine. Changes live in memory until `save`.
    """

    def __init__(self, encoder_name: str, encoder_fingerprint: str, dimension: int, index: Any) -> None:
        """Use `empty` or `load` instead. `index` is a FAISS index from row ids to vectors; a row holds a fact."""
        self.encoder_name = encoder_name
        self.encoder_fingerprint = encoder_fingerprint
        self.dimension = dimension
        self._index = index
        self._facts: dict[int, Fact] = {}
        self._rows: dict[str, int] = {}
        self._rows_of: dict[int, set[int]] = defaultdict(set)

    @classmethod
    def empty(cls, encoder_name: str, encoder_fingerprint: str, dimension: int) -> "ProfileStore":
        """A store without facts, for vectors of `dimension` components from the encoder named."""
        import faiss

        index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        return cls(encoder_name, encoder_fingerprint, dimension, index)

    def __len__(self) -> int:
        return len(self._facts)

    @property
    def speakers(self) -> tuple[int, ...]:
        """The ids of the speakers that have a fact, ascending."""
        return tuple(sorted(self._rows_of))

    def facts_of(self, speaker: int) -> list[Fact]:
        """The facts of a speaker, in the order of their ids; none for a stranger."""
        facts = (self._facts[row] for row in self._rows_of.get(speaker, ()))
        return sorted(facts, key=lambda fact: fact.id)

    def upsert(self, facts: Sequence[Fact], vectors: np.ndarray) -> None:
        """Add facts with their vectors, shape (len(facts), dimension); a fact replaces the one with its id.

        Where an id comes twice in `facts`, the last one counts.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        assert vectors.shape == (len(facts), self.dimension), f"{len(facts)} facts, vectors of shape {vectors.shape}"
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3), "vectors must have length 1"
        places = {fact.id: place for place, fact in enumerate(facts)}
        self._remove([self._rows[id] for id in places if id in self._rows])
        first = max(self._facts, default=-1) + 1
        rows = range(first, first + len(places))
        for row, place in zip(rows, places.values(), strict=True):
            self._place(row, facts[place])
        self._index.add_with_ids(vectors[list(places.values())], np.array(rows, dtype=np.int64))

    def delete_speaker(self, speaker: int) -> int:
        """Remove all facts of a speaker; after the next `save` no file holds them either. Returns their number."""
        rows = list(self._rows_of.get(speaker, ()))
        self._remove(rows)
        return len(rows)

    def search(self, vector: np.ndarray, k: int, speaker: int | None = None) -> list[tuple[Fact, float]]:
        """Return the `k` facts nearest to `vector`, shape (dimension,), best first, each with its cosine.

        Of one speaker, or of all. Left out are general facts, which stand in the trunk already. Cosines are rounded to
        6 digits; facts with equal ones come in the order of their ids.
        """
        rows = self._facts if speaker is None else self._rows_of.get(speaker, ())
        candidates = [row for row in rows if not self._facts[row].general]
        if k < 1 or not candidates:
            return []
        query = np.asarray(vector, dtype=np.float32).reshape(self.dimension)
        rows = self._find_rows(query, k, candidates)
        # The float32 scores of FAISS differ with its kernels, so from machine to machine: enough to reorder near ties.
        vectors = self._index.reconstruct_batch(rows).astype(np.float64)
        cosines = (vectors @ query.astype(np.float64)).round(6).tolist()
        found = [(self._facts[row], cosine) for row, cosine in zip(rows.tolist(), cosines, strict=True)]
        return sorted(found, key=lambda pair: (-pair[1], pair[0].id))[:k]

    def refuse_split(self, split: str) -> None:
        """Raise DataError naming a fact that draws on `split`, where there is one."""
        refuse_split(list(self._facts.values()), split)

    def save(self, folder: Path) -> None:
        """Write facts.jsonl, index.faiss and store.json, the sidecar with their hashes.

        The sidecar comes last: a save that dies half-way leaves the store of before, or one that `load` refuses.
        """
        import faiss

        for stale in (path for name in (FACTS, INDEX, SIDECAR) for path in folder.glob(f".{name}.*")):
            stale.unlink()  # left by a killed save; it may hold facts of a speaker deleted since
        rows = sorted(self._facts)
        write_facts(folder / FACTS, (self._facts[row] for row in rows))
        with replace_atomically(folder / INDEX) as temporary:
            # Written by FAISS itself, a file cut short by a full disk would pass for whole.
            temporary.write_bytes(faiss.serialize_index(self._index).tobytes())
        sidecar = {
            "format": FORMAT,
            "metric": "inner_product",
            "encoder": {"name": self.encoder_name, "fingerprint": self.encoder_fingerprint},
            "dimension": self.dimension,
            "count": len(rows),
            "rows": {str(row): self._facts[row].id for row in rows},
            "sha256": {name: hash_file(folder / name) for name in (FACTS, INDEX)},
        }
        write_json(folder / SIDECAR, sidecar | {"sidecar_sha256": hash_record(sidecar)})

    @classmethod
    def load(cls, folder: Path, encoder_name: str, encoder_fingerprint: str, dimension: int) -> "ProfileStore":
        """Read the store that `save` wrote, for use with the encoder described.

        The fingerprint decides whether it is the same encoder, the name is for messages: a model folder may move.
        All hashes are checked before FAISS, which is unsafe on damaged files, reads the index. They prove that the
        files belong together, not who wrote them: load only what you trust.
        Raises DataError for a missing or changed file, another format, encoder or dimension.
        """
        import faiss

        sidecar = _read_sidecar(folder)
        _check_sidecar(folder / SIDECAR, sidecar, encoder_name, encoder_fingerprint, dimension)
        for name in (FACTS, INDEX):
            _require(folder / name)
            _expect(folder / name, "sha256", found=hash_file(folder / name), expected=sidecar["sha256"][name])
        store = cls(encoder_name, encoder_fingerprint, dimension, faiss.read_index(str(folder / INDEX)))
        facts = read_facts(folder / FACTS)
        _expect(folder / FACTS, "fact ids", found=[fact.id for fact in facts], expected=list(sidecar["rows"].values()))
        for row, fact in zip(sidecar["rows"], facts, strict=True):
            store._place(int(row), fact)
        return store

    def _place(self, row: int, fact: Fact) -> None:
        self._facts[row] = fact
        self._rows[fact.id] = row
        self._rows_of[fact.speaker].add(row)

    def _remove(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        self._index.remove_ids(np.array(rows, dtype=np.int64))
        for row in rows:
            fact = self._facts.pop(row)
            del self._rows[fact.id]
            self._rows_of[fact.speaker].remove(row)
            if not self._rows_of[fact.speaker]:
                del self._rows_of[fact.speaker]

    def _find_rows(self, query: np.ndarray, k: int, candidates: list[int]) -> np.ndarray:
        """The candidate rows among which are the `k` nearest to the query, and all that are tied with the last."""
        import faiss

        selector = faiss.IDSelectorBatch(np.array(candidates, dtype=np.int64))
        parameters = faiss.SearchParameters(sel=selector)  # pyright: ignore[reportCallIssue]
        reach = k
        while True:
            reach = min(2 * reach + 8, len(candidates))
            scores, rows = self._index.search(query[None], reach, params=parameters)
            if reach == len(candidates) or scores[0, -1] < scores[0, k - 1] - TIE:
                return rows[0]


def _read_sidecar(folder: Path) -> dict[str, Any]:
    path = folder / SIDECAR
    _require(path)
    sidecar = read_json(path)
    if not isinstance(sidecar, dict):
        raise DataError(f"{path}: expected a JSON object, found {sidecar!r:.80}. {_REMEDY}")
    return sidecar


def _check_sidecar(path: Path, sidecar: dict[str, Any], name: str, fingerprint: str, dimension: int) -> None:
    # The format first: another one may well hash itself in another way.
    _expect(path, "format", found=sidecar.get("format"), expected=FORMAT)
    found = sidecar.pop("sidecar_sha256", None)
    _expect(path, "sha256 of its own content", found=found, expected=hash_record(sidecar))
    encoder = sidecar["encoder"]
    if encoder["fingerprint"] != fingerprint:
        raise DataError(
            f"{path}: the store was made with the encoder {encoder['name']!r} (fingerprint {encoder['fingerprint']}), "
            f"expected {name!r} ({fingerprint}). Name that encoder in the config, or run the profiles stage again."
        )
    _expect(path, "dimension", found=sidecar["dimension"], expected=dimension)


def _require(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: no such file; a profile store has {FACTS}, {INDEX} and {SIDECAR}. {_REMEDY}")


def _expect(path: Path, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise DataError(f"{path}: {what}: found {found!r:.80}, expected {expected!r:.80}. {_REMEDY}")
