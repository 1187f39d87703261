"""The forms of files in which corpora come: a line of the table for each."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import dailydialog, emorynlp, erckit_jsonl, iemocap, meld
from .dialogue import SPLITS, Dialogue
from .errors import DataError
from .labels import DAILYDIALOG, EMORYNLP, IEMOCAP, IEMOCAP_FOUR, MELD, LabelSet

Found = tuple[list[Dialogue], Counter[str]]
"""The dialogues of a split, and the repairs by kind."""


@dataclass(frozen=True)
class Form:
    """A form of files: how it is recognised, how a split is read, and what was published about it.

    `files` are patterns of which each finds a file in the folder, with a mark that stands near its beginning. `read`
    takes the folder, the split and the labels. `published` gives by split, or by several joined with "+", the numbers
    of dialogues (several where publications differ, none where nobody counted) and of labelled utterances.
    """

    files: Mapping[str, str]
    read: Callable[[Path, str, LabelSet], Found]
    find_labels: Callable[[Path], LabelSet]
    corpus: str | None = None  # None: the folder's name
    published: Mapping[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    note: str = ""


def _three_files(names: tuple[str, str, str], mark: str, read: Callable[[Path, LabelSet], Found], **more: Any) -> Form:
    """Return the form in which train, dev and test are a file each."""
    paths: dict[str, str] = dict(zip(SPLITS, names, strict=True))

    def read_split(folder: Path, split: str, labels: LabelSet) -> Found:
        dialogues, repairs = read(folder / paths[split], labels)
        if not dialogues:
            raise DataError(f"{folder / paths[split]}: no dialogues. Fill the file, or take another corpus.")
        return dialogues, repairs

    return Form(files=dict.fromkeys(names, mark), read=read_split, **more)


def _iemocap(labels: LabelSet, counts: tuple[int, int]) -> Form:
    """Return the form for a label set, with how many utterances of sessions 1 to 4 and of session 5 it labels."""
    return Form(
        files={iemocap.TRANSCRIPTIONS.format("*"): "[", iemocap.EVALUATIONS.format("*"): "["},
        read=iemocap.read_split,
        find_labels=lambda folder: labels,
        corpus="iemocap",
        published={"train+dev": ((120,), counts[0]), "test": ((31,), counts[1])},
        note=(
            f"iemocap has no official dev: it is every {iemocap.EVERY}th dialogue of sessions 1 to 4 by name. Scripted "
            "dialogues recur in every session, so much of what is said in test is said in train too."
        ),
    )


EMORYNLP_COUNTS = {"train": ((713,), 9934), "dev": ((99,), 1344), "test": ((85,), 1328)}
FORMS: dict[str, Form] = {
    "emorynlp-json": _three_files(
        names=("emotion-detection-trn.json", "emotion-detection-dev.json", "emotion-detection-tst.json"),
        mark='"episodes"',
        read=emorynlp.read_json,
        find_labels=lambda folder: EMORYNLP,
        corpus="emorynlp",
        published=EMORYNLP_COUNTS,
    ),
    "emorynlp-text": _three_files(
        names=("EMORY_train.txt", "EMORY_dev.txt", "EMORY_test.txt"),
        mark="\t",
        read=emorynlp.read_lines,
        find_labels=lambda folder: EMORYNLP,
        corpus="emorynlp",
        published=EMORYNLP_COUNTS,
        note="emorynlp-text names only the first speaker of an utterance that several people say.",
    ),
    "emorynlp-csv": _three_files(
        names=("emorynlp_train_final.csv", "emorynlp_dev_final.csv", "emorynlp_test_final.csv"),
        mark="Scene_ID",
        read=emorynlp.read_csv,
        find_labels=lambda folder: EMORYNLP,
        corpus="emorynlp",
        published={"train": ((), 7551), "dev": ((), 954), "test": ((), 984)},
        note=(
            "emorynlp-csv is the subset with video: 7,551/954/984 of the standard 9,934/1,344/1,328 utterances; "
            "its scores do not compare with published ones."
        ),
    ),
    "meld-csv": _three_files(
        names=("train_sent_emo.csv", "dev_sent_emo.csv", "test_sent_emo.csv"),
        mark="Dialogue_ID",
        read=meld.read_csv,
        find_labels=lambda folder: MELD,
        corpus="meld",
        published={"train": ((1038, 1039), 9989), "dev": ((114,), 1109), "test": ((280,), 2610)},
    ),
    "dailydialog": Form(
        files={
            name: mark
            for split in SPLITS
            for name, mark in zip(dailydialog.name_files(split), (dailydialog.END, " "), strict=True)
        },
        read=dailydialog.read_split,
        find_labels=lambda folder: DAILYDIALOG,
        corpus="dailydialog",
        published={"train": ((11118,), 87170), "dev": ((1000,), 8069), "test": ((1000,), 7740)},
        note="dailydialog names no speaker: those of a dialogue are two strangers, of whom nothing is known elsewhere.",
    ),
    "iemocap-6": _iemocap(IEMOCAP, (5758, 1622)),
    "iemocap-4": _iemocap(IEMOCAP_FOUR, (4290, 1241)),
    "erckit-jsonl": _three_files(
        names=("train.jsonl", "dev.jsonl", "test.jsonl"),
        mark='"utterances"',
        read=erckit_jsonl.read_split,
        find_labels=erckit_jsonl.read_labels,
    ),
}


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that a pattern of a form finds, sorted."""
    return sorted(path for path in folder.glob(pattern) if path.is_file())
