"""Parts of a stage that are made one by one, such as splits: what a part was made from, and whether it still stands."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..data.errors import DataError
from ..data.files import hash_file, read_json, read_sealed, write_sealed
from .manifest import MANIFEST, STARTED

RECORDS = "checkpoints"


def find_part(folder: Path, name: str, key: str) -> dict[str, Any] | None:
    """Return what was noted about a part, None unless it was made under this key and its files are as they were."""
    try:
        record = read_sealed(folder / RECORDS / f"{name}.json", "Remove it.")
    except DataError:
        return None
    if record["key"] != key:
        return None
    intact = all((folder / file).is_file() and hash_file(folder / file) == was for file, was in record["files"].items())
    return record["notes"] if intact else None


def finish_part(folder: Path, name: str, key: str, files: Iterable[str], notes: dict[str, Any]) -> None:
    """Record a part whose files, by their paths in the folder, are all written; the record makes it count."""
    hashes = {file: hash_file(folder / file) for file in files}
    write_sealed(folder / RECORDS / f"{name}.json", {"key": key, "files": hashes, "notes": notes})


def keep_parts(folder: Path, names: Iterable[str]) -> None:
    """Remove all from the folder but these parts: others, and what a killed process left."""
    kept = {folder / MANIFEST, folder / STARTED}
    for name in names:
        record = folder / RECORDS / f"{name}.json"
        kept |= {record, *(folder / file for file in read_json(record)["files"])}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in kept:
            path.unlink()
