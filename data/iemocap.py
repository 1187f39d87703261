"""IEMOCAP (Busso et al. 2008, doi:10.1007/s10579-008-9076-6): the folder of the full release, of which text is read.

Session 5 is test, as published. There is no official dev: every eighth dialogue of sessions 1 to 4 by name, the first
one included (15 of 120), which takes from each session, of improvised and of scripted dialogues.
"""

import re
from collections import Counter
from difflib import get_close_matches
from pathlib import Path

from .dialogue import Dialogue, Utterance
from .errors import DataError
from .labels import IEMOCAP, LabelSet
from .reading import NO_TEXT, build_utterance
from .text import read_text

TRANSCRIPTIONS = "Session{}/dialog/transcriptions/Ses*.txt"  # not *.txt: copies have files ._Ses*.txt beside them
EVALUATIONS = "Session{}/dialog/EmoEvaluation/Ses*.txt"
SESSIONS, EVERY = range(1, 6), 8
EMOTIONS = {"hap": "happy", "sad": "sad", "neu": "neutral", "ang": "angry", "exc": "excited", "fru": "frustrated"}
OTHERS = ("sur", "fea", "dis", "oth", "xxx")  # surprise, fear, disgust, another; xxx where annotators disagree
TIMES = r"\[\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*\]"
TURN = re.compile(rf"((Ses\d\d)[FM]_\w+_([FM])\w+)\s*{TIMES}\s*:(.*)", re.ASCII)
EVALUATION = re.compile(rf"{TIMES}\s+(\w+)\s+(\w+)\s+\[.*\]", re.ASCII)


def read_split(folder: Path, split: str, labels: LabelSet = IEMOCAP) -> tuple[list[Dialogue], Counter[str]]:
    """Read a split of the release; ids are the official ones, a speaker is the woman or man of a session (Ses01_F).

    Turns are in order of their times. Excited counts as happy in a label set without it. Utterances of emotions outside
    the set, and those that nobody annotated, have no label. An utterance without text is left out, and counted.
    """
    repairs: Counter[str] = Counter()
    return [_read_dialogue(path, labels, repairs) for path in _choose_files(folder, split)], repairs


def _choose_files(folder: Path, split: str) -> list[Path]:
    """Return the transcriptions of a split."""
    sessions = {number: sorted(folder.glob(TRANSCRIPTIONS.format(number))) for number in SESSIONS}
    for number, paths in sessions.items():
        if not paths:
            raise DataError(
                f"{folder}: no file {TRANSCRIPTIONS.format(number)}. Sessions 1 to 4 are train and dev, session 5 is "
                "test; add what is missing from the release."
            )
    *first, last = sessions.values()
    if split == "test":
        return last
    paths = [path for session in first for path in session]
    return [path for place, path in enumerate(paths) if (place % EVERY == 0) == (split == "dev")]


def _read_dialogue(path: Path, labels: LabelSet, repairs: Counter[str]) -> Dialogue:
    felt = _read_emotions(path.parents[1] / "EmoEvaluation" / path.name, repairs)
    text, mended = read_text(path)
    repairs.update(mended)
    turns: list[tuple[float, float, Utterance]] = []
    said: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.startswith("Ses"):  # remarks on noises, and speech that nobody gave a time
            continue
        source = f"{path}:{number}"
        match = TURN.fullmatch(line.strip())
        if not match:
            raise DataError(
                f"{source}: found {line.strip()!r}, expected a turn such as "
                "'Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.' Mend the line."
            )
        id, session, gender, begins, ends, words = match.groups()
        if said.setdefault(id, source) != source:
            raise DataError(f"{source}: a second turn {id!r}, the first is {said[id]}. Remove one of the two.")
        emotion, _ = felt.pop(id, (None, ""))
        if not words.strip():
            repairs[NO_TEXT] += 1
            continue
        label = _choose_label(emotion, labels)
        utterance = build_utterance(id, [f"{session}_{gender}"], words, label, labels, source)
        turns.append((float(begins), float(ends), utterance))
    for id, (_, source) in felt.items():
        raise DataError(f"{source}: an emotion for {id!r}, of which {path} has no line. Mend one of the two.")
    turns.sort(key=lambda turn: turn[:2])
    return Dialogue(path.stem, tuple(utterance for _, _, utterance in turns), source=str(path))


def _choose_label(emotion: str | None, labels: LabelSet) -> str | None:
    if emotion == "excited" and emotion not in labels:
        return "happy"
    return emotion if emotion in labels else None


def _read_emotions(path: Path, repairs: Counter[str]) -> dict[str, tuple[str | None, str]]:
    """Return by utterance what annotators agreed on, None for other emotions, with its "file:line"."""
    text, mended = read_text(path)
    repairs.update(mended)
    felt: dict[str, tuple[str | None, str]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.startswith("["):  # what single annotators say, and the header
            continue
        source = f"{path}:{number}"
        match = EVALUATION.fullmatch(line.strip())
        if not match:
            raise DataError(
                f"{source}: found {line.strip()!r}, expected such as "
                "'[6.2901 - 8.2357] Ses01F_impro01_F000 neu [2.5000, 2.5000, 2.5000]'. Mend the line."
            )
        _, _, id, code = match.groups()
        if code not in EMOTIONS and code not in OTHERS:
            near = get_close_matches(code, [*EMOTIONS, *OTHERS], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"{source}: unknown emotion {code!r}; expected one of {', '.join([*EMOTIONS, *OTHERS])}.{hint}"
            )
        felt[id] = (EMOTIONS.get(code), source)
    return felt
