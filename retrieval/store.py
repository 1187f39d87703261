"""The FAISS store: facts, found by the meaning of their text."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import parse_json_line
from .blocks import CheckedFile, hash_blocks
from .profiles import Fact, read_facts, refuse_split
from .store_files import (
    CODES,
    FACTS,
    INDEX,
    ROWS,
    read_sidecar,
    read_tables,
    remove_leftovers,
    require,
    seal,
    write_index,
)

CANDIDATES = 200  # of which, and 20 more for each fact asked for, the codes are good enough to be scored exactly
TIE = 1e-5  # cosines nearer than this may be equal: more than the rounding to 6 digits and the error of float32


class ProfileStore:
    """The facts of all speakers, each with the vector that finds it, as `write_store` wrote them.

    Vectors have length 1, so that their inner product is the cosine.
    """

    def __init__(self, folder: Path, sidecar: dict[str, Any], tables: dict[str, np.ndarray]) -> None:
        """Use `load` instead."""
        self.folder, self.dimension = folder, sidecar["dimension"]
        self._sidecar, self._tables = sidecar, tables
        self._files = {
            name: CheckedFile(require(folder / name), size, tables[name]) for name, size in sidecar["bytes"].items()
        }
        self._row_bytes = 4 * self.dimension
        # A flat index of FAISS is a short head and the vectors.
        self._head = sidecar["bytes"][INDEX] - self._row_bytes * (len(tables["lines"]) - 1)

    @classmethod
    def load(cls, folder: Path, encoder_name: str, encoder_fingerprint: str, dimension: int) -> "ProfileStore":
        """Open a store, for use with the encoder described.

        The fingerprint decides whether it is the same encoder, the name is for messages: a model folder may move.
        A small store is checked whole. A large one is mapped, and each block of it checked when it is first used:
        opening it takes milliseconds, and nothing is used unchecked. Its codes are read and checked by the first
        search over all, before FAISS, which is unsafe on damaged files, sees them. Hashes prove that the files belong
        together, not who wrote them: load only what you trust.
        Raises DataError for a missing or changed file, another format, encoder or dimension.
        """
        sidecar = read_sidecar(folder, encoder_name, encoder_fingerprint, dimension)
        store = cls(folder, sidecar, read_tables(folder / ROWS, sidecar["sha256"]))
        if CODES not in store._files:
            for file in store._files.values():
                file.read(0, len(file.bytes))
        return store

    def __len__(self) -> int:
        return sum(self._sidecar["splits"].values())

    @property
    def speakers(self) -> tuple[int, ...]:
        """The ids of the speakers that have a fact, ascending."""
        return tuple(self._tables["speakers"].tolist())

    def facts_of(self, speaker: int) -> list[Fact]:
        """The facts of a speaker, in the order of their ids; none for a stranger."""
        return [self._fact(row) for row in self._rows_of(speaker)]

    def search(self, vector: np.ndarray, k: int, speaker: int | None = None) -> list[tuple[Fact, float]]:
        """Return the `k` facts nearest to `vector`, shape (dimension,), best first, each with its cosine.

        Of one speaker, or of all. Left out are general facts, which stand in the trunk already. Cosines are rounded to
        6 digits; facts with equal ones come in the order of their ids. All of this is exact, but for one thing: over
        all of a large store a few of the `k` may be missed, and the next best come in their place.
        """
        query = np.asarray(vector, dtype=np.float32).reshape(self.dimension)
        rows = self._find_candidates(query, k) if speaker is None else self._searched_rows_of(speaker)
        if k < 1 or not len(rows):
            return []
        # The float32 scores of FAISS differ with its kernels, so from machine to machine: enough to reorder near ties.
        cosines = (self._vectors(rows).astype(np.float64) @ query.astype(np.float64)).round(6)
        good = cosines >= np.sort(cosines)[-k:][0]
        found = [(self._fact(row), cosine) for row, cosine in zip(rows[good], cosines[good].tolist(), strict=True)]
        return sorted(found, key=lambda pair: (-pair[1], pair[0].id))[:k]

    def refuse_split(self, split: str) -> None:
        """Raise DataError naming a fact that draws on `split`, where there is one."""
        if self._sidecar["splits"].get(split):
            refuse_split(read_facts(self.folder / FACTS), split)

    def delete_speaker(self, speaker: int) -> int:
        """Erase all facts of a speaker, from the files too. Returns their number.

        Lines and vectors are blanked where they stand, so that it takes no longer in a larger store, but for the
        codes, which are written anew. What dies half-way leaves a store of which the blocks in question are refused.
        """
        facts, rows, tables = self.facts_of(speaker), self._rows_of(speaker), self._tables
        if not facts:
            return 0
        remove_leftovers(self.folder)
        if CODES in self._files:
            self._delete_codes(rows)
        start, stop = tables["lines"][[rows.start, rows.stop]].tolist()
        lines = self._files[FACTS].read(start, stop)
        self._files[FACTS].overwrite(start, np.where(lines == ord("\n"), lines, ord(" ")).astype(np.uint8))
        zeros = np.zeros(len(rows) * self._row_bytes, np.uint8)
        self._files[INDEX].overwrite(self._head + rows.start * self._row_bytes, zeros)
        place = np.searchsorted(tables["speakers"], speaker)
        for name in ("speakers", "first", "last"):
            tables[name] = np.delete(tables[name], place)
        tables["searched"][rows.start : rows.stop] = False
        for fact in facts:
            self._sidecar["splits"][fact.split] -= 1
        tables |= {name: file.hashes for name, file in self._files.items()}
        seal(self.folder, self._sidecar, tables, list(self._files))
        for name in ("_searched", "_overview"):
            self.__dict__.pop(name, None)  # they are made anew when they are needed
        return len(facts)

    def _rows_of(self, speaker: int) -> range:
        place = int(np.searchsorted(self._tables["speakers"], speaker))
        if place == len(self._tables["speakers"]) or self._tables["speakers"][place] != speaker:
            return range(0)
        return range(int(self._tables["first"][place]), int(self._tables["last"][place]))

    def _searched_rows_of(self, speaker: int) -> np.ndarray:
        rows = self._rows_of(speaker)
        return rows.start + np.flatnonzero(self._tables["searched"][rows.start : rows.stop])

    def _fact(self, row: int) -> Fact:
        start, stop = self._tables["lines"][row : row + 2].tolist()
        line, source = self._files[FACTS].read(start, stop), f"{self.folder / FACTS}:{row + 1}"
        return Fact.from_record(parse_json_line(line.tobytes().decode(), source), source)

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        file = self._files[INDEX]
        file.check((self._head + self._row_bytes * rows).tolist(), self._row_bytes)
        return file.bytes[self._head :].view(np.float32).reshape(-1, self.dimension)[rows]

    def _find_candidates(self, query: np.ndarray, k: int) -> np.ndarray:
        """The searched rows among which are the `k` nearest to the query, and all that are tied with the last.

        In a large store they are the best by their codes, among which a few of the `k` may be missing.
        """
        total, reach = len(self._searched), k
        if k < 1 or not total:
            return self._searched[:0]
        if CODES in self._files:
            _, places = self._overview.search(query[None], min(CANDIDATES + 20 * k, total))
            return self._searched[places[0]]
        while True:
            reach = min(2 * reach + 8, total)
            scores, places = self._overview.search(query[None], reach)
            if reach == total or scores[0, -1] < scores[0, k - 1] - TIE:
                return self._searched[places[0]]

    @cached_property
    def _searched(self) -> np.ndarray:
        """The rows that a search over all may find, ascending."""
        return np.flatnonzero(self._tables["searched"])

    @cached_property
    def _overview(self) -> Any:
        """A FAISS index of the searched rows, in their order."""
        import faiss

        if CODES in self._files:
            return faiss.IndexPQFastScan(self._read_codes())
        index = faiss.IndexFlatIP(self.dimension)
        index.add(self._vectors(self._searched))
        return index

    def _read_codes(self) -> Any:
        import faiss

        file = self._files[CODES]
        return faiss.deserialize_index(file.read(0, len(file.bytes)))

    def _delete_codes(self, rows: range) -> None:
        import faiss

        codes, path = self._read_codes(), self.folder / CODES
        codes.remove_ids(faiss.IDSelectorRange(*np.searchsorted(self._searched, (rows.start, rows.stop)).tolist()))
        write_index(path, codes)
        self._files[CODES] = CheckedFile(path, path.stat().st_size, hash_blocks(path))
