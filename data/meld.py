"""MELD (Poria et al. 2019, arXiv:1810.02508): the official CSV."""

import re
from collections import Counter
from pathlib import Path

from .dialogue import Dialogue, Utterance
from .errors import DataError
from .labels import MELD, LabelSet
from .reading import build_utterance, group_turns, name_episode, name_split, read_number, read_table

COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
SESSION = {"Season", "Episode", "StartTime"}  # not in every copy


def read_csv(path: Path, labels: LabelSet = MELD) -> tuple[list[Dialogue], Counter[str]]:
    """Read a split; ids come from the split and the official numbers: dialogue train-0012, utterance train-0012-03.

    A session is an episode; its dialogues, which are shuffled in the files, are in order of their times.
    """
    rows, repairs = read_table(path, COLUMNS)
    split, begun = name_split(path), dict[str, tuple[str, int]]()
    for source, row in rows:
        if row.keys() >= SESSION:
            id, found = _name_dialogue(row, split, source), (name_episode(row, source), _read_time(row, source))
            begun[id] = min(found, begun.get(id, found))
    return group_turns((_read_row(row, split, labels, source) for source, row in rows), begun), repairs


def _name_dialogue(row: dict[str, str], split: str, source: str) -> str:
    return f"{split}-{read_number(row, 'Dialogue_ID', source):04d}"


def _read_time(row: dict[str, str], source: str) -> int:
    """Return the seconds of 00:16:16,059."""
    match = re.fullmatch(r"(\d{1,4}):(\d\d):(\d\d)[,.]\d+", row["StartTime"].strip(), flags=re.ASCII)
    if not match:
        raise DataError(f"{source}: StartTime is {row['StartTime']!r:.80}, expected a time such as 00:16:16,059.")
    hours, minutes, seconds = map(int, match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _read_row(row: dict[str, str], split: str, labels: LabelSet, source: str) -> tuple[str, int, Utterance]:
    dialogue_id = _name_dialogue(row, split, source)
    turn = read_number(row, "Utterance_ID", source)
    speakers = row["Speaker"].split(" and ")  # "Joey and Chandler" speak together; no single name holds " and "
    id = f"{dialogue_id}-{turn:02d}"
    return dialogue_id, turn, build_utterance(id, speakers, row["Utterance"], row["Emotion"], labels, source)
