"""What a user sees while erckit works: result lines on stdout, progress on stderr."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

from .processes import is_helper

T = TypeVar("T")

_NOISY = (
    "accelerate", "datasets", "faiss", "filelock", "fontTools", "httpx", "httpcore", "huggingface_hub", "matplotlib",
    "peft", "sentence_transformers", "torch", "transformers", "trl", "urllib3",
)  # fmt: skip


def say(line: str) -> None:
    """Write one line to stdout at once, also where stdout is a pipe. Of processes that work together, one speaks."""
    if is_helper():
        return
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def progress(
    iterable: Iterable[T], total: int | None, what: str, *, quiet_seconds: float = 2, interval: float = 15
) -> Iterator[T]:
    """Yield the items, showing how far it is on stderr: a bar on a terminal, else a line now and then.

    Nothing is shown in the first `quiet_seconds`, then at most one line every `interval` seconds.
    """
    if is_helper():
        yield from iterable
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, desc=what, total=total, delay=quiet_seconds, leave=False)
        return
    start = time.monotonic()
    due = start + quiet_seconds
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if now >= due and done:
            sys.stderr.write(_progress_line(what, done, total, now - start) + "\n")
            sys.stderr.flush()
            due = now + interval
        yield item


def _progress_line(what: str, done: int, total: int | None, seconds: float) -> str:
    if not total:
        return f"{what}: {done:,}"
    return f"{what}: {done:,} of {total:,}, {format_seconds(seconds / done * max(total - done, 0), coarse=True)} left"


def format_seconds(seconds: float, *, coarse: bool = False) -> str:
    """A duration for people: "12.3 s", "3 min 12 s", "1 h 20 min"; coarse: "12 s", "3 min", "1 h 20 min"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if coarse else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{round(seconds / 60)} min" if coarse else f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_memory(mib: float) -> str:
    """An amount of memory for people: "96 MiB", "1.2 GiB"."""
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def quiet_libraries() -> None:
    """Silence the progress bars, load reports and warnings of other packages; errors and our own warnings stay.

    To be called before they are imported: they read these variables once. A variable that is set already stays.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns in every forked data loader otherwise
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=rf"({'|'.join(_NOISY)})(\.|$)")
