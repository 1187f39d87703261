"""What training leaves on the disk while it goes on, so that a killed one is resumed from what is whole."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data.errors import DataError
from ..data.files import hash_file, name_errors, read_json, read_sealed, write_sealed
from .processes import is_helper

SEAL = "sealed.json"


def seal_checkpoint(folder: Path) -> None:
    """Record the hashes of all its files: what has no such record, or another content, is never resumed from."""
    write_sealed(folder / SEAL, _hash_files(folder))


def find_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint to resume from, None where there is none; those after it are removed.

    It is as it was written, and so is the best one so far, which training ends with.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if _is_whole(path):
            best = read_json(path / "trainer_state.json").get("best_global_step")
            if best is None or _is_whole(locate_checkpoint(folder, best)):
                return str(path)
        if not is_helper():
            shutil.rmtree(path, ignore_errors=True)
    return None


def locate_checkpoint(folder: Path | str, step: int) -> Path:
    return Path(folder) / f"checkpoint-{step}"


def _is_whole(folder: Path) -> bool:
    try:
        return read_sealed(folder / SEAL, "Remove the folder.") == _hash_files(folder)
    except (DataError, OSError):
        return False


def _hash_files(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL]
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}


@contextmanager
def name_failed_writes(path: Path) -> Iterator[None]:
    """Have whatever a library raises while it writes into `path` become an OSError that names it.

    On a full disk safetensors, torch and tokenizers each raise something else.
    """
    with name_errors(path):
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, str(error).partition("\n")[0].rstrip("."), str(path)) from error
