"""Emotions for conversations of one's own: dialogues in erckit's form in, one line an utterance out.

A line is an utterance, as in the files of the predict stage (`predictions.read_predictions` reads these too): rows of
one table, and none is longer for a long dialogue. Answers computed together may differ in their last digits from the
same ones computed apart. So dialogues are answered in blocks, each by itself, and a block that a kill cut short is done
again as a whole: the file is the same, byte for byte, however often work on it stopped.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

from .. import __version__
from ..data.dialogue import Dialogue
from ..data.erckit_jsonl import read_line
from ..data.errors import DataError
from ..data.files import name_errors, read_sealed, write_sealed
from .backbone import precision
from .config import Memory
from .console import progress, say
from .recognizer import Recognizer

# Conversations of a block for each of those that advance together: more wait less at its end, and lose more to a kill.
ROUNDS = 8


def label_file(recognizer: Recognizer, source: Path, target: Path, memory: Memory | None = None) -> Counter[str]:
    """Answer every utterance of a file, with a temporary memory or without. Returns counts of what was done.

    Lines go to `target`.part, which takes the name `target` when all are there. Where an earlier call was stopped, this
    one goes on, unless memories are kept of speakers: those last from the first dialogue on. Raises DataError for a
    line that is no dialogue, once all before it are written; where `target` is there already; and where what was begun
    had another beginning of the input, another model or another memory.
    """
    part, record = (target.with_name(target.name + ending) for ending in (".part", ".part.json"))
    if not source.is_file():
        raise DataError(f"{source}: no such file. Name one in erckit's form, a dialogue a line.")
    if target.exists():
        done = read_sealed(record, "Remove it.") if record.exists() and not part.exists() else {}
        if done.get("output_bytes") != target.stat().st_size:
            raise DataError(f"{target}: it is there already. Name another --output, or remove it.")
        record.unlink()  # a kill came right before this
        return Counter(done["counts"])
    target.parent.mkdir(parents=True, exist_ok=True)
    made_with = _describe(recognizer, memory)
    with name_errors(part), source.open("rb") as lines, part.open("ab") as output:
        _lock(output, part)
        begun = _take_up(part, record, made_with)
        output.truncate(begun["output_bytes"])
        counts, place = Counter[str](begun["counts"]), _Place(**begun["read"])
        digest = _skip(lines, place, source, part)
        reader = _Reader(_show(lines), str(source), memory, place, digest)
        for answers in label_blocks(recognizer, reader, memory, counts):
            for answer in answers:
                output.write(_to_line(answer))
            output.flush()
            if reader.error is None:
                done = {"read": asdict(reader.place), "output_bytes": output.tell(), "counts": counts}
                write_sealed(record, {"made_with": made_with, **done})
        if reader.error:
            say(f"  what came before the error is answered in {part}")
        reader.finish()
        os.replace(part, target)
    record.unlink()
    return counts


def label_lines(recognizer: Recognizer, lines: Iterable[bytes], memory: Memory | None = None) -> Iterator[bytes]:
    """Yield what `label_file` writes, for lines that come from elsewhere, such as standard input."""
    reader = _Reader(lines, "standard input", memory, _Place(), hashlib.sha256())
    for answers in label_blocks(recognizer, reader, memory, Counter()):
        yield from map(_to_line, answers)
    reader.finish()


def label_blocks(
    recognizer: Recognizer, reader: "_Reader", memory: Memory | None, counts: Counter[str]
) -> Iterator[Iterator[dict[str, Any]]]:
    """Yield the answers of each block, to be taken before the next: only what they need is read and kept.

    `counts` counts dialogues, utterances and repairs, and with a memory turns written and writes undone.
    """
    if memory and memory.oracle:
        raise DataError("`memory.oracle` writes gold emotions, and these conversations have none. Leave it out.")
    together = memory.slots if memory else recognizer.config.predict.conversations
    size = inf if memory and memory.scope == "speaker" else ROUNDS * together
    while not reader.has_ended:
        yield _label(recognizer, reader.read_block(size, counts), memory, counts)


def _label(
    recognizer: Recognizer, dialogues: Iterable[Dialogue], memory: Memory | None, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    asked: deque[tuple[Dialogue, int]] = deque()

    def note() -> Iterator[Dialogue]:
        for dialogue in dialogues:
            asked.extend((dialogue, turn) for turn in range(len(dialogue.utterances)))
            yield dialogue

    for found in recognizer.predict(note(), memory):
        dialogue, turn = asked.popleft()
        utterance = dialogue.utterances[turn]
        assert (found.dialogue, found.utterance) == (dialogue.id, utterance.id)
        counts["utterances"] += 1
        if memory:
            counts.update({"turns written": int(bool(found.written)), "writes undone": int(found.undone)})
        yield {
            "dialogue": dialogue.id,
            "utterance": utterance.id,
            "turn": turn,
            "speaker": utterance.speaker,
            "text": utterance.text,
            "gold": utterance.label,
            "label": found.label,
            "probabilities": found.probabilities,
        }


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a file was read: lines, bytes, and the SHA-256 of these bytes."""

    lines: int = 0
    bytes: int = 0
    sha256: str = hashlib.sha256(b"").hexdigest()


_Item = tuple[Dialogue, _Place, Counter[str]]
"""A dialogue, the place after it, and what was repaired in it."""


class _Reader:
    """The dialogues of some lines, in blocks, up to the end or to the first line that is none.

    `place` is that of the last dialogue given, not of the one that is read ahead; `error` is what ended it too early.
    `digest` is the SHA-256 of what stands before the lines.
    """

    def __init__(self, lines: Iterable[bytes], source: str, memory: Memory | None, place: _Place, digest: Any) -> None:
        self.place, self.error = place, None
        self._source, self._by_session = source, memory is not None and memory.scope == "session"
        self._items = self._read(lines, place, digest)
        self._next = next(self._items, None)

    @property
    def has_ended(self) -> bool:
        return self._next is None

    def read_block(self, size: float, counts: Counter[str]) -> Iterator[Dialogue]:
        """Yield the next `size` dialogues, or more where memories are kept of sessions and the last is not over."""
        given, last = 0, None
        while self._next is not None and (given < size or self._shares_memory(last, self._next[0])):
            last, self.place, repairs = self._next
            given += 1
            counts["dialogues"] += 1
            counts.update(repairs)
            yield last
            self._next = next(self._items, None)

    def finish(self) -> None:
        """Raise DataError for the line that could not be read, or where there was no dialogue."""
        if self.error:
            raise self.error
        if not self.place.lines:
            raise DataError(f"{self._source}: no dialogues. Expected erckit's form, a dialogue a line.")

    def _read(self, lines: Iterable[bytes], place: _Place, digest: Any) -> Iterator[_Item]:
        size, last = place.bytes, None
        for number, line in enumerate(lines, start=place.lines + 1):
            digest.update(line)
            size += len(line)
            repairs: Counter[str] = Counter()
            try:
                dialogue = read_line(line, f"{self._source}:{number}", repairs)
                if dialogue:
                    self._check(last, dialogue)
            except DataError as error:
                self.error = error
                return
            if dialogue:
                yield dialogue, _Place(number, size, digest.hexdigest()), repairs
                last = dialogue

    def _check(self, last: Dialogue | None, dialogue: Dialogue) -> None:
        """Raise DataError where a dialogue cannot come after the last one."""
        if last and dialogue.id == last.id:
            raise DataError(
                f"{dialogue.source}: dialogue {dialogue.id!r} has the id of the one before it. Give it one of its own."
            )
        if self._shares_memory(last, dialogue) and last and dialogue.begins < last.begins:
            raise DataError(
                f"{dialogue.source}: dialogue {dialogue.id!r} begins before {last.id!r}, which stands before it in "
                f"session {dialogue.session!r}, and memories are kept of sessions. Sort them by 'begins'."
            )

    def _shares_memory(self, last: Dialogue | None, dialogue: Dialogue) -> bool:
        return self._by_session and last is not None and last.session is not None and last.session == dialogue.session


def _describe(recognizer: Recognizer, memory: Memory | None) -> dict[str, Any]:
    """Return all that answers depend on, but for the dialogues."""
    return {
        "erckit": __version__,
        "recognizer": recognizer.identity,
        "precision": precision(recognizer.config.model),
        "predict": recognizer.config.predict.model_dump(include={"conversations", "row_tokens"}),
        "memory": memory.model_dump(mode="json") if memory else None,
    }


def _take_up(part: Path, record: Path, made_with: dict[str, Any]) -> dict[str, Any]:
    """Return the record of what an earlier call did, or that of a beginning."""
    written = part.stat().st_size
    if not record.is_file():
        if written:
            say(f"  note: {part} ends before its first block does; beginning anew.")
        return {"read": {}, "output_bytes": 0, "counts": {}}
    begun = read_sealed(record, f"Remove it and {part.name} to begin anew.")
    if begun["made_with"] != made_with or written < begun["output_bytes"]:
        raise DataError(
            f"{part}: begun with another model, adapter, memory or version of erckit, or cut short since. Give the "
            f"same command again, or remove {part.name} and {record.name} to begin anew."
        )
    say(f"  going on after {begun['counts']['dialogues']:,} dialogues")
    return begun


def _skip(lines: BinaryIO, place: _Place, source: Path, part: Path) -> Any:
    """Read up to a place where an earlier call stopped. Returns the SHA-256 so far, to go on with."""
    digest, left = hashlib.sha256(), place.bytes
    while left and (chunk := lines.read(min(left, 1 << 20))):
        digest.update(chunk)
        left -= len(chunk)
    if digest.hexdigest() != place.sha256:
        raise DataError(
            f"{source}: its first {place.lines:,} lines are not those that {part} was begun with. Give it the same "
            "ones, or remove that file to begin anew."
        )
    return digest


def _show(lines: BinaryIO) -> Iterator[bytes]:
    """Pass on the lines that are left, with progress."""
    begin = lines.tell()
    total = sum(not line.isspace() for line in lines)
    lines.seek(begin)
    return progress(lines, total, "dialogues read")


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"{path}: another erckit process writes it. Wait until it ends.") from error


def _to_line(answer: dict[str, Any]) -> bytes:
    return (json.dumps(answer, ensure_ascii=False) + "\n").encode()
