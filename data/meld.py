"""MELD (Poria et al. 2019, arXiv:1810.02508): the official CSV."""

from collections import Counter
from pathlib import Path

from .dialogue import Dialogue, Utterance
from .labels import MELD, LabelSet
from .reading import build_utterance, group_turns, name_split, read_number, read_table

COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


def read_csv(path: Path, labels: LabelSet = MELD) -> tuple[list[Dialogue], Counter[str]]:
    """Read a split; ids come from the split and the official numbers: dialogue train-0012, utterance train-0012-03."""
    rows, repairs = read_table(path, COLUMNS)
    return group_turns(_read_row(row, name_split(path), labels, source) for source, row in rows), repairs


def _read_row(row: dict[str, str], split: str, labels: LabelSet, source: str) -> tuple[str, int, Utterance]:
    dialogue_id = f"{split}-{read_number(row, 'Dialogue_ID', source):04d}"
    turn = read_number(row, "Utterance_ID", source)
    speakers = row["Speaker"].split(" and ")  # "Joey and Chandler" speak together; no single name holds " and "
    id = f"{dialogue_id}-{turn:02d}"
    return dialogue_id, turn, build_utterance(id, speakers, row["Utterance"], row["Emotion"], labels, source)
