"""Small corpora with random content, right in every form in which corpora circulate, line by line."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import Any

from erckit.data.labels import DAILYDIALOG, EMORYNLP, MELD

Said = tuple[tuple[str, ...], str, str]
"""Speakers, text and label of an utterance."""

NAMES = ("Ada", "Ben O'Neil", "Zoë", "Lucía Peña", 'Tom "Tiny" Ray', "Мира")
WORDS = ("well", "no,", "you’re", "“so”", "naïve…", 'a "quote"', "O'Hara", "100%", "😀", "é", "(hm)", "[door]", "a\\b")
SIZES = (6, 3, 3)  # dialogues of train, dev and test


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, the utterances that it holds, and the number of the dialogue that they belong to."""

    text: bytes
    said: tuple[Said, ...] = ()
    dialogue: int | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """The names of the files of train, dev and test, the labels, and what renders dialogues of a split as lines."""

    files: tuple[str, str, str]
    labels: tuple[str, ...]
    render: Callable[[str, Sequence[list[Said]]], Iterator[Line]]
    is_first_speaker_alone: bool = False


def make_corpus(random: Random, form: str) -> dict[str, list[Line]]:
    """Return the lines of every file of a corpus in which each label occurs in train, and no text twice."""
    if form in PAIRED:
        return dict(PAIRED[form](random))
    made = FORMS[form]
    dialogues = [list(_talk(random, made, number)) for number in range(sum(SIZES))]
    ends = [sum(SIZES[: place + 1]) for place in range(len(SIZES))]
    parts = [dialogues[end - size : end] for end, size in zip(ends, SIZES, strict=True)]
    files = {
        name: list(made.render(split, part))
        for name, split, part in zip(made.files, ("train", "dev", "test"), parts, strict=True)
    }
    if form == "erckit-jsonl" and random.random() < 0.5:
        files["labels.json"] = [Line(json.dumps(list(made.labels)).encode())]
    return files


def _talk(random: Random, form: Form, number: int) -> Iterator[Said]:
    for turn, label in enumerate(random.sample(form.labels, len(form.labels))):
        names = random.sample(NAMES, 1 if form.is_first_speaker_alone else random.choice([1, 1, 1, 2]))
        words = random.choices(WORDS, k=random.randint(1, 5))
        yield tuple(names), f"{' '.join(words)} {number}.{turn}", label


def _render_json(split: str, dialogues: Sequence[list[Said]]) -> Iterator[Line]:
    yield _line(f'{{"season_id": "{split}", "episodes": [')
    for number, dialogue in enumerate(dialogues):
        scene = f"s01_e{_place(split, number):02d}_c01"
        yield _line(f'{{"episode_id": "{scene[:7]}", "scenes": [')
        yield _line(f'{{"scene_id": "{scene}", "utterances": [')
        for turn, said in enumerate(dialogue):
            speakers, text, label = said
            value = {
                "utterance_id": f"{scene}_u{turn:03d}",
                "speakers": list(speakers),
                "transcript": text,
                "tokens": [text.split()],
                "emotion": label.capitalize(),
            }
            comma = "," if turn + 1 < len(dialogue) else ""
            yield _line(json.dumps(value, ensure_ascii=turn % 2 == 0) + comma, said, number)
        yield _line("]}")
        yield _line("]}" + ("," if number + 1 < len(dialogues) else ""))
    yield _line("]}")


def _render_text(split: str, dialogues: Sequence[list[Said]]) -> Iterator[Line]:
    for number, dialogue in enumerate(dialogues):
        for said in dialogue:
            yield _line(f"{said[0][0]}\t{said[1]}\t{said[2].capitalize()}", said, number)
        yield _line("")


def _render_emorynlp_csv(split: str, dialogues: Sequence[list[Said]]) -> Iterator[Line]:
    yield _line("Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,Start_Time,End_Time")
    for number, dialogue in enumerate(dialogues):
        for turn, said in enumerate(dialogue):
            speakers, label, episode = str(list(said[0])), said[2].capitalize(), _place(split, number)
            cells = [said[1], speakers, label, number, turn, 1, episode, "0:1", "x"]
            yield _line(_row(cells), said, number)


def _render_meld(split: str, dialogues: Sequence[list[Said]]) -> Iterator[Line]:
    yield _line("Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime")
    for number, dialogue in enumerate(dialogues):
        for turn, said in enumerate(dialogue):
            times = [f"00:{number:02d}:{turn:02d},059", f"00:{number:02d}:{turn:02d},960"]
            cells = [turn, said[1], " and ".join(said[0]), said[2], "positive", number, turn, 1, 2, *times]
            yield _line(_row(cells), said, number)


def _render_jsonl(split: str, dialogues: Sequence[list[Said]]) -> Iterator[Line]:
    for number, dialogue in enumerate(dialogues):
        values = [
            {"speaker": said[0][0] if len(said[0]) == 1 else list(said[0]), "text": said[1], "label": said[2]}
            for said in dialogue
        ]
        value = {"id": f"{split}-{number}", "session": "s", "begins": number, "utterances": values}
        yield Line(json.dumps(value, ensure_ascii=number % 2 == 0).encode(), tuple(dialogue), number)


def _make_dailydialog(random: Random) -> Iterator[tuple[str, list[Line]]]:
    for name, size in zip(("train", "validation", "test"), SIZES, strict=True):
        codes = [random.sample(range(len(DAILYDIALOG)), len(DAILYDIALOG)) for _ in range(size)]
        said = [" ".join(f"{' '.join(random.choices(WORDS, k=3))} __eou__" for _ in emotions) for emotions in codes]
        yield f"{name}/dialogues_{name}.txt", list(map(_line, said))
        yield f"{name}/dialogues_emotion_{name}.txt", [_line(" ".join(map(str, emotions))) for emotions in codes]


def _make_iemocap(random: Random) -> Iterator[tuple[str, list[Line]]]:
    codes = ("hap", "sad", "neu", "ang", "exc", "fru", "sur", "xxx")
    for session, kind in product(range(1, 6), ("impro01", "script01_1")):
        name, folder = f"Ses0{session}F_{kind}", f"Session{session}/dialog"
        said, felt = list[Line](), [_line("% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"), _line("")]
        for turn, code in enumerate(random.sample(codes, len(codes))):
            id = f"{name}_{'FM'[turn % 2]}{turn:03d}"
            said.append(_line(f"{id} [{turn:03d}.2901-{turn:03d}.9357]: {' '.join(random.choices(WORDS, k=3))}"))
            felt.append(_line(f"[{turn}.2901 - {turn}.9357]\t{id}\t{code}\t[2.5000, 2.5000, 2.5000]"))
            felt += [_line("C-E2:\tNeutral;\t()"), _line("")]
        yield f"{folder}/transcriptions/{name}.txt", said
        yield f"{folder}/EmoEvaluation/{name}.txt", felt


def _line(text: str, said: Said | None = None, dialogue: int | None = None) -> Line:
    return Line(text.encode(), () if said is None else (said,), dialogue)


def _row(cells: Sequence[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()


def _place(split: str, number: int) -> int:
    """Return an episode that no other dialogue of the corpus has."""
    return 10 * ("train", "dev", "test").index(split) + number


FORMS = {
    "emorynlp-json": Form(
        ("emotion-detection-trn.json", "emotion-detection-dev.json", "emotion-detection-tst.json"),
        EMORYNLP.names,
        _render_json,
    ),
    "emorynlp-text": Form(
        ("EMORY_train.txt", "EMORY_dev.txt", "EMORY_test.txt"),
        EMORYNLP.names,
        _render_text,
        is_first_speaker_alone=True,
    ),
    "emorynlp-csv": Form(
        ("emorynlp_train_final.csv", "emorynlp_dev_final.csv", "emorynlp_test_final.csv"),
        EMORYNLP.names,
        _render_emorynlp_csv,
    ),
    "meld-csv": Form(("train_sent_emo.csv", "dev_sent_emo.csv", "test_sent_emo.csv"), MELD.names, _render_meld),
    "erckit-jsonl": Form(("train.jsonl", "dev.jsonl", "test.jsonl"), EMORYNLP.names, _render_jsonl),
}
PAIRED = {"dailydialog": _make_dailydialog, "iemocap-6": _make_iemocap}
"""Forms that tell what is said and what is felt in two files."""
