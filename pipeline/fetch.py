"""Fetch: the public releases of corpora, resumed where a connection broke off, checked before a file gets its name."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from .. import __version__
from ..data import emorynlp, meld
from ..data.dialogue import SPLITS, Dialogue
from ..data.errors import DataError
from ..data.files import hash_file, name_errors
from ..data.forms import FORMS
from .console import progress, say

ATTEMPTS, PAUSE, TIMEOUT = 5, 1.0, 30.0  # attempts without progress; seconds before the second, then doubled; seconds
BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Release:
    """A public release of one file a split, for train, dev and test.

    `address` is what the files lie under. `known` has the size in bytes and the SHA-256 of files by name; the others
    are known by their `published` numbers of dialogues and of utterances alone (as in `data.forms`).
    """

    address: str
    files: tuple[str, str, str]
    published: dict[str, tuple[tuple[int, ...], int]]
    read: Callable[[Path], tuple[list[Dialogue], Any]]
    known: dict[str, tuple[int, str]]
    licence: str


def _release(form: str, **more: Any) -> Release:
    train, dev, test = FORMS[form].files
    return Release(files=(train, dev, test), published=dict(FORMS[form].published), **more)


RELEASES = {
    "emorynlp": _release(
        "emorynlp-json",
        # A branch, where MELD has a commit: no commit is known to hold these very files. Their content is known.
        address="https://raw.githubusercontent.com/emorynlp/emotion-detection/master/json",
        read=emorynlp.read_json,
        known={
            "emotion-detection-dev.json": (
                563109,
                "177f0b8ae5442045ea60e6f7940e14b1a8c15c704201f01da1ba74943f99086e",
            ),
            "emotion-detection-tst.json": (
                556256,
                "2da84b0bffbc9da2f3b9de8016c2d3ae5478e6ccb26d473313368373b427dedc",
            ),
        },
        licence="Apache-2.0",
    ),
    "meld": _release(
        "meld-csv",
        address="https://raw.githubusercontent.com/declare-lab/MELD/e8cedf27b5d2877e198332c957127e16eb214afe/data/MELD",
        read=meld.read_csv,
        known={
            "train_sent_emo.csv": (1119290, "d2fa2d6529cf03cac2989efec05c9b27d8fd2f4c8fc5974c7ae88aa537fa02db"),
            "dev_sent_emo.csv": (121640, "2e89c6f8aa182d6f62f8c6331aece905ac7273ca4999660bfb5213e1d0370c1c"),
            "test_sent_emo.csv": (294526, "8d37103938f7067600839fe29d5a114a6cd1bcdafb75bec101e06464c5006888"),
        },
        licence="GPL-3.0",
    ),
}


def fetch(release: Release, folder: Path, mirror: str | None = None) -> str:
    """Bring a folder what it lacks of a release, from its address or that of a mirror. Returns what is there then.

    A file is NAME.part until all of it has arrived and is what was published; the next call goes on with that. Raises
    DataError where the server refuses, where it does not answer or breaks off again and again, and for wrong content.
    """
    address = (mirror or release.address).rstrip("/")
    if not _is_address(address):
        raise DataError(f"{address}: expected an address such as https://HOST/FOLDER, with %20 for a blank.")
    counts = []
    for split, name in zip(SPLITS, release.files, strict=True):
        path, part = folder / name, folder / f"{name}.part"
        if path.exists():
            counts.append(_check(path, str(path), "Move it away, and fetch again.", split, release))
            say(f"{name}: already there")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        _download(f"{address}/{name}", part)
        try:
            counts.append(_check(part, f"{address}/{name}", "Fetch again, or from another mirror.", split, release))
        except DataError:
            part.unlink()
            raise
        part.rename(path)
        say(f"{name}: {path.stat().st_size:,} bytes, as published")
    dialogues, utterances = ("/".join(f"{count:,}" for count in column) for column in zip(*counts, strict=True))
    return f"{folder}: {dialogues} dialogues, {utterances} utterances; licence {release.licence}"


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.netloc) and re.search(r"[^!-~]", text) is None
    except ValueError:  # brackets that do not match
        return False


def _check(path: Path, source: str, remedy: str, split: str, release: Release) -> tuple[int, int]:
    """Raise DataError unless a file is what was published. Returns its numbers of dialogues and utterances."""
    if known := release.known.get(path.name.removesuffix(".part")):
        size, digest = known
        if path.stat().st_size != size:
            raise DataError(f"{source}: {path.stat().st_size:,} bytes, published {size:,}. {remedy}")
        if hash_file(path) != digest:
            raise DataError(f"{source}: its SHA-256 is {hash_file(path)}, published {digest}. {remedy}")
    try:
        dialogues, _ = release.read(path)
    except DataError as error:
        raise DataError(f"{source}: not what was published ({error}). {remedy}") from error
    found = len(dialogues), sum(len(dialogue.utterances) for dialogue in dialogues)
    numbers, utterances = release.published[split]
    if found[0] not in numbers or found[1] != utterances:
        raise DataError(
            f"{source}: {found[0]:,} dialogues with {found[1]:,} utterances, published "
            f"{' or '.join(f'{number:,}' for number in numbers)} with {utterances:,}. {remedy}"
        )
    return found


class _Interrupted(Exception):
    """The connection failed in a way that another attempt may mend."""


def _download(address: str, part: Path) -> None:
    """Bring `part` to its full length, each attempt going on where the one before broke off."""
    longest, failures = _size(part), 0
    while True:
        try:
            return _append(address, part)
        except _Interrupted as interruption:
            failures = failures + 1 if _size(part) <= longest else 1
            longest = max(longest, _size(part))
            if failures == ATTEMPTS:
                raise DataError(
                    f"{address}: {interruption}, {ATTEMPTS} times in a row. {_size(part):,} bytes are kept in {part}; "
                    "the same command goes on from there. Check the network, or name a mirror with --mirror."
                ) from interruption
            say(f"  {part.stem}: {interruption} after {_size(part):,} bytes; trying again")
            time.sleep(PAUSE * 2 ** (failures - 1))


def _append(address: str, part: Path) -> None:
    """Ask once for what `part` lacks, and append it; a server that sends the whole file begins it anew."""
    response = _open(address, part)
    if response is None:
        return
    with response:
        begins, total = _find_range(response, _size(part))
        blocks = None if total is None else -(-(total - begins) // BLOCK)
        with name_errors(part), part.open("ab") as file:
            file.truncate(begins)
            for block in progress(_receive(response), blocks, f"{part.stem}: blocks of 64 KiB"):
                file.write(block)
    if total is not None and _size(part) < total:
        raise _Interrupted("the connection broke off")


def _open(address: str, part: Path) -> HTTPResponse | None:
    """Ask for what `part` lacks. Returns the answer, None where it lacks nothing. Raises DataError for a refusal."""
    had = _size(part)
    headers = {"User-Agent": f"erckit/{__version__}"} | ({"Range": f"bytes={had}-"} if had else {})
    try:
        return urlopen(Request(address, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{had}":
                return None
            if error.code == 416:
                part.unlink(missing_ok=True)  # longer than the file: no beginning of it
            answer = f"the server answered {error.code} {error.reason}".rstrip()
        if error.code in (408, 416, 429) or error.code >= 500:
            raise _Interrupted(answer) from error
        raise DataError(f"{address}: {answer}. Check the address; a mirror has the files right under it.") from error
    except (OSError, HTTPException) as error:
        raise _Interrupted(f"no answer ({getattr(error, 'reason', error)})") from error


def _find_range(response: HTTPResponse, had: int) -> tuple[int, int | None]:
    """Return at which byte an answer begins, and how long the whole file is, None where the server does not tell."""
    begins, total = 0, None
    if response.status == 206:
        found = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", found)
        if not match or int(match[1]) > had:
            raise DataError(
                f"{response.url}: asked from byte {had:,} on, the server answered Content-Range {found!r}. Remove the "
                ".part file, or name another mirror."
            )
        begins, total = int(match[1]), None if match[2] == "*" else int(match[2])
    if total is None and response.length is not None:
        total = begins + response.length
    return begins, total


def _receive(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(BLOCK)
        except (OSError, HTTPException) as error:
            raise _Interrupted(f"the connection broke off ({error})") from error
        if not block:
            return
        yield block


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
