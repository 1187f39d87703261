"""One process at a time works in a run folder; a second one is told who that is."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from ..data.files import name_errors

LOCK = ".lock"


class RunError(RuntimeError):
    """A run folder cannot be worked on as asked; the message says why and what to do."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made, for this process until the block ends, or the process does, however it ends.

    The lock is the system's, so that a dead process holds nothing; what stands in the file is for the message alone.
    A process may hold a folder twice. Raises RunError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = folder.resolve()
    if key in _held:
        yield
        return
    with (folder / LOCK).open("a+b", buffering=0) as file:
        with name_errors(folder / LOCK):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"{folder}: {_describe_holder(file)} works in this run folder. "
                    "Wait until it ends, or give this run another name with --set name=NAME."
                ) from error
            since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
        _held.add(key)
        try:
            yield
        finally:
            _held.remove(key)


_held: set[Path] = set()


def _describe_holder(file: BinaryIO) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"another erckit process (pid {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):  # it has only just begun
        return "another erckit process"
