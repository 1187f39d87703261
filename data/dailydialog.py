"""DailyDialog (Li et al. 2017, arXiv:1710.03957): the text files of the official release.

Two persons without names speak in turn, others in every dialogue. A name is an identity (`data.speakers`), so each
dialogue has two of its own: A and B would join thousands of strangers into two people with profiles. The names are as
short as they can be, because prompts show them, and do not tell the split: dialogue 4 of train is that of A12 and B12.
"""

from collections import Counter
from pathlib import Path

from .dialogue import SPLITS, Dialogue
from .errors import DataError
from .labels import DAILYDIALOG, LabelSet
from .reading import NO_TEXT, build_utterance
from .text import read_text

FOLDERS = {"train": "train", "dev": "validation", "test": "test"}
END = "__eou__"


def name_files(split: str) -> tuple[str, str]:
    """Return where the release has the dialogues of a split, and their emotions."""
    name = FOLDERS[split]
    return f"{name}/dialogues_{name}.txt", f"{name}/dialogues_emotion_{name}.txt"


def read_split(folder: Path, split: str, labels: LabelSet = DAILYDIALOG) -> tuple[list[Dialogue], Counter[str]]:
    """Read a split of the release: a line of one file holds a dialogue, the same line of the other its emotions.

    Ids count lines from 0: dialogue train-00004, utterance train-00004-02. Emotions are places in the label set. An
    utterance without text is left out with its emotion, and counted.
    """
    path, emotions_path = (folder / name for name in name_files(split))
    (text, repairs), (emotions, _) = read_text(path), read_text(emotions_path)
    lines, emotion_lines = text.rstrip().split("\n"), emotions.rstrip().split("\n")
    if not lines[0]:
        raise DataError(f"{path}: no dialogues. Fill the file, or take another corpus.")
    dialogues = []
    for place, (line, emotion_line) in enumerate(zip(lines, emotion_lines, strict=False)):
        said = line.strip().removesuffix(END).split(END)
        source = f"{emotions_path}:{place + 1}"
        felt = [_parse_emotion(digit, labels, source) for digit in emotion_line.split()]
        if len(said) != len(felt):
            missing = "" if len(lines) == len(emotion_lines) else f" {_compare_lengths(lines, emotion_lines)}"
            raise DataError(
                f"{source}: {len(felt)} emotions, but {path}:{place + 1} has {len(said)} utterances, each of which has "
                f"one. Mend the line, or remove it from both files.{missing}"
            )
        dialogues.append(_build_dialogue(split, place, said, felt, labels, f"{path}:{place + 1}"))
        if left_out := len(said) - len(dialogues[-1].utterances):
            repairs[NO_TEXT] += left_out
    if len(lines) != len(emotion_lines):
        longer, shorter = (path, emotions_path) if len(lines) > len(emotion_lines) else (emotions_path, path)
        raise DataError(
            f"{longer}:{len(dialogues) + 1}: {shorter} has no such line. {_compare_lengths(lines, emotion_lines)}"
        )
    return dialogues, repairs


def _compare_lengths(lines: list[str], emotion_lines: list[str]) -> str:
    return (
        f"There are {len(lines):,} dialogues and {len(emotion_lines):,} lines of emotions, one for each dialogue, so a "
        "line is missing here or above; fetch both files again."
    )


def _build_dialogue(
    split: str, place: int, said: list[str], felt: list[str], labels: LabelSet, source: str
) -> Dialogue:
    id, number = f"{split}-{place:05d}", len(SPLITS) * place + SPLITS.index(split)
    utterances = [
        build_utterance(f"{id}-{turn:02d}", [f"{'AB'[turn % 2]}{number}"], text, label, labels, source)
        for turn, (text, label) in enumerate(zip(said, felt, strict=True))
        if text.strip()
    ]
    return Dialogue(id, tuple(utterances), source=source)


def _parse_emotion(digit: str, labels: LabelSet, source: str) -> str:
    if digit not in map(str, range(len(labels))):
        known = ", ".join(f"{place} ({label})" for place, label in enumerate(labels))
        raise DataError(f"{source}: unknown emotion {digit!r}; expected one of {known}.")
    return labels.names[int(digit)]
