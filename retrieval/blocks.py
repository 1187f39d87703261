"""Files that are mapped, not read: what is used of them is checked, and nothing else costs anything."""

import hashlib
import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..data.errors import DataError

BLOCK = 1 << 14  # bytes; what is known of one person lies in two or three blocks of a file
REMEDY = "Run the profiles stage again."


class CheckedFile:
    """A file whose blocks are compared with their SHA-256 before they are used for the first time.

    `hashes` comes from `hash_blocks`. Checked is what lies on the disk at that time: a file that somebody changes
    under a process which has checked it already is not noticed by that process.
    """

    def __init__(self, path: Path, size: int, hashes: np.ndarray) -> None:
        """Map the file. Raises DataError where it has another size than `size` bytes."""
        self.path, self.hashes = path, hashes
        expect(path, "size in bytes", found=path.stat().st_size, expected=size)
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self.bytes = np.frombuffer(mapped, np.uint8)
        self._checked = bytearray(len(hashes))

    def check(self, starts: Iterable[int], length: int) -> None:
        """Check the stretches of `length` bytes that begin at `starts`. Raises DataError where a block is another."""
        for start in starts:
            for block in range(start // BLOCK, -(-(start + length) // BLOCK)):
                if not self._checked[block]:
                    self._check_block(block)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the bytes of a stretch, checked. Raises DataError as `check` does."""
        self.check([start], stop - start)
        return self.bytes[start:stop]

    def overwrite(self, start: int, data: np.ndarray) -> None:
        """Write bytes into the file itself, in place of as many that are there, and take them for right from now on."""
        self.check([start], len(data))
        with self.path.open("r+b") as file:
            file.seek(start)
            file.write(data.tobytes())
        for block in range(start // BLOCK, -(-(start + len(data)) // BLOCK)):
            self.hashes[block] = np.frombuffer(self._hash_block(block), np.uint8)

    def _check_block(self, block: int) -> None:
        found, expected = self._hash_block(block).hex(), self.hashes[block].tobytes().hex()
        expect(self.path, f"bytes from {block * BLOCK} on: sha256", found=found, expected=expected)
        self._checked[block] = True

    def _hash_block(self, block: int) -> bytes:
        return hashlib.sha256(self.bytes[block * BLOCK : (block + 1) * BLOCK].data).digest()


def hash_blocks(path: Path) -> np.ndarray:
    """Return the SHA-256 of every block of a file, shape (blocks, 32)."""
    with path.open("rb") as file:
        digests = [hashlib.sha256(block).digest() for block in iter(lambda: file.read(BLOCK), b"")]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32).copy()


def expect(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise DataError(f"{path}: {what}: found {found!r:.80}, expected {expected!r:.80}. {REMEDY}")
