"""What the readers of all corpora share: tables with line numbers, utterances checked on the way in."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .dialogue import SPLITS, Dialogue, Utterance
from .errors import DataError
from .labels import LabelSet
from .text import one_line, read_text

NO_TEXT = "utterances without text left out"
LONGEST = 19  # digits; more is no number of anything, and Python refuses thousands of them


def read_table(path: Path, columns: Sequence[str]) -> tuple[list[tuple[str, dict[str, str]]], Counter[str]]:
    """Read a CSV file that has at least `columns`. Returns ("file:line", row by column) for every row, and the repairs.

    Raises DataError for a missing column, a row of the wrong length, and broken quoting.
    """
    text, repairs = read_text(path)
    # Strict, because otherwise a forgotten quote silently swallows the rest of the file.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            raise DataError(
                f"{path}:1: no column {missing[0]!r}; found {', '.join(header) or 'none'}. "
                f"Expected at least {', '.join(columns)}."
            )
        return list(_rows(path, reader, header)), repairs
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: broken CSV ({error}). Check the quotes around here.") from error


def build_utterance(
    id: str, speakers: Iterable[str], text: str, label: str | None, labels: LabelSet | None, source: str
) -> Utterance:
    """Make an utterance of raw parts: one-line text and names, and a label of the set.

    `labels` None takes any label, in lower case. Raises DataError without text or speaker, and for an unknown label.
    """
    text = one_line(text)
    if not text:
        raise DataError(f"{source}: utterance {id!r} has no text. Remove it or fill it.")
    if label is not None:
        label = labels.parse(label, source) if labels else label.strip().lower()
    return Utterance(id, tuple(one_line(name) for name in speakers), text, label, source)


def group_turns(turns: Iterable[tuple[str, int, Utterance]], sessions: Mapping[str, tuple[str, int]]) -> list[Dialogue]:
    """Gather (dialogue id, turn, utterance) into dialogues by first appearance, each sorted by its turns.

    `sessions` has the session and the place in it of the dialogues that belong to one.
    """
    groups: dict[str, list[tuple[int, Utterance]]] = {}
    for dialogue_id, turn, utterance in turns:
        groups.setdefault(dialogue_id, []).append((turn, utterance))
    dialogues = []
    for dialogue_id, group in groups.items():
        group.sort(key=lambda pair: pair[0])
        utterances = tuple(utterance for _, utterance in group)
        session, begins = sessions.get(dialogue_id, (None, 0))
        dialogues.append(Dialogue(dialogue_id, utterances, session, begins, utterances[0].source))
    return dialogues


def name_episode(row: dict[str, str], source: str) -> str:
    """Return the episode of a row by its columns Season and Episode, such as s01_e15."""
    return f"s{read_number(row, 'Season', source):02d}_e{read_number(row, 'Episode', source):02d}"


def read_number(row: dict[str, str], column: str, source: str) -> int:
    """Return a cell as an integer of at least 0, or raise DataError."""
    cell = row[column].strip()
    if not (cell.isascii() and cell.isdigit() and len(cell) < LONGEST):
        raise DataError(f"{source}: {column} is {cell!r:.80}, expected a whole number. Mend this row.")
    return int(cell)


def name_split(path: Path) -> str:
    """Return the split that a file name holds ("train" in EMORY_train.txt), else the name without its suffix."""
    return next((part for part in path.stem.split("_") if part in SPLITS), path.stem)


def _rows(path: Path, reader: Any, header: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    line = reader.line_num + 1
    for row in reader:
        if row and len(row) != len(header):
            raise DataError(
                f"{path}:{line}: {len(row)} fields, expected {len(header)} as in the header. "
                "Put quotes around text that holds commas."
            )
        if row:
            yield f"{path}:{line}", dict(zip(header, row, strict=True))
        line = reader.line_num + 1
