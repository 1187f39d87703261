"""Reading with places, writing atomically: the only way in which erckit touches JSON files."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .errors import DataError


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` when the block ends well, else it goes.

    Raises OSError with the name of `path` where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)  # mkstemp makes files private; artefacts are for sharing
            # Some file systems tell of a full disk here only, and without it a loss of power may leave an empty file.
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Have an OSError name `path` where it names no file, as that of a full disk, or a temporary one beside it."""
    try:
        yield
    except OSError as error:
        # Names of temporary files are absolute, whatever the path is.
        hidden = str(path.absolute().with_name(f".{path.name}."))
        if error.filename is None or str(Path(error.filename).absolute()).startswith(hidden):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: Path, text: str) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_json_lines(path: Path, values: Iterable[Any]) -> int:
    """Write one JSON value a line, streaming. Returns the number of lines."""
    count = 0
    with replace_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for value in values:
            file.write(format_json_line(value))
            count += 1
    return count


def format_json_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a file of one JSON value. Raises DataError where it is missing, broken or not UTF-8."""
    try:
        with _open_text(path) as file:
            return decode_json(file.read())
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg}). Mend or remove the file.") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value), streaming; blank lines are passed over.

    Raises DataError where the file is missing or not UTF-8, or a line is broken JSON.
    """
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield number, parse_json_line(line, f"{path}:{number}")


def parse_json_line(line: str, source: str) -> Any:
    """Parse a line that is one JSON value. Raises DataError naming `source`."""
    try:
        return decode_json(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source}: broken JSON ({error.msg}, column {error.colno}). "
            "Each line holds one JSON object; mend or remove the line."
        ) from error


def decode_json(text: str) -> Any:
    """Return the JSON value of a text. Raises JSONDecodeError, for what Python cannot hold too."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", text, 0) from error
    except ValueError as error:
        raise json.JSONDecodeError("a number with too many digits", text, 0) from error


def write_sealed(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON object with a hash of itself, by which `read_sealed` sees whether it was changed."""
    write_json(path, add_seal(record))


def add_seal(record: dict[str, Any]) -> dict[str, Any]:
    return record | {SEAL: hash_record(record)}


def read_sealed(path: Path, remedy: str) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the hash. Raises DataError where it was changed, with the `remedy`."""
    record = read_json(path)
    if not isinstance(record, dict) or record.pop(SEAL, None) != hash_record(record):
        raise DataError(f"{path}: its content is not what erckit wrote there. {remedy}")
    return record


SEAL = "sha256_of_the_rest"


def hash_record(record: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, in hex, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8") as file:
            yield file
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. Check the path, or run the stage that writes it.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, found other bytes ({error.reason}). Mend the file.") from error


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; remembered within the process while path, size and time stay the same."""
    status, now = path.stat(), time.time_ns()
    key = (path.absolute(), status.st_size, status.st_mtime_ns)
    if key in _hashes:
        return _hashes[key]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if now - status.st_mtime_ns > SETTLED:
        _hashes[key] = digest
    return digest


SETTLED = 3 * 10**9  # nanoseconds; a file just written may change again within one tick of the file system's clock
_hashes: dict[tuple[Path, int, int], str] = {}
