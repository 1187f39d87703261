"""erckit's own form: one dialogue a line as JSON. What any corpus can be brought into, and what the run folder keeps.

A line: {"id": "varnish", "utterances": [{"speaker": "Ada", "text": "Who left the hatch open?", "label": "mad"}]}.
"speaker" is a name or a list of names, "label" may be null or absent, and an utterance may have an "id" of its own
(default: the dialogue's id, a hyphen and the turn: varnish-00). A dialogue may name the "session" that it is a part of,
such as an episode, and where in there it "begins", a whole number in any unit.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from .dialogue import Dialogue, Utterance
from .errors import DataError
from .files import parse_json_line, read_json, read_json_lines, write_json_lines
from .labels import LabelSet
from .reading import build_utterance
from .text import SURROGATES, mend, mend_line, read_text

DIALOGUE_KEYS = ("id", "utterances", "session", "begins")
UTTERANCE_KEYS = ("id", "speaker", "text", "label")


def write_dialogues(path: Path, dialogues: Iterable[Dialogue]) -> None:
    """Write dialogues so that `read_dialogues` gives back their equals."""
    write_json_lines(path, map(_dialogue_to_json, dialogues))


def read_dialogues(path: Path, labels: LabelSet | None) -> list[Dialogue]:
    """Read what `write_dialogues` wrote, exactly: the encoding is taken as it is.

    `labels` None takes any label. Raises DataError for whatever departs from the form, by file and line.
    """
    return list(stream_dialogues(path, labels))


def stream_dialogues(path: Path, labels: LabelSet | None) -> Iterator[Dialogue]:
    """Yield what `read_dialogues` returns, one dialogue in memory at a time."""
    for number, value in read_json_lines(path):
        yield _parse_dialogue(value, f"{path}:{number}", labels, clean=str)


def read_split(path: Path, labels: LabelSet | None) -> tuple[list[Dialogue], Counter[str]]:
    """Read a file that a user brings, mending its encoding. Returns the dialogues and the repairs by kind."""
    text, repairs = read_text(path)
    lines = enumerate(text.split("\n"), start=1)
    return [_parse_line(line, f"{path}:{number}", labels, repairs) for number, line in lines if line.strip()], repairs


def read_line(line: bytes, source: str, repairs: Counter[str]) -> Dialogue | None:
    """Read one line of a file that a user brings, as `read_split` does, with any labels; None where it is blank."""
    text = mend_line(line, source, repairs)
    return _parse_line(text, source, None, repairs) if text.strip() else None


def read_labels(folder: Path, file: str = "train.jsonl") -> LabelSet:
    """Return the label set of a folder: labels.json where there is one, else the sorted labels of a file there."""
    path = folder / "labels.json"
    if path.is_file():
        names = read_json(path)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f'{path}: expected a JSON list of label names in order, such as ["mad", "sad"].')
    else:
        path = folder / file
        dialogues, _ = read_split(path, None)
        names = sorted({u.label for dialogue in dialogues for u in dialogue.utterances if u.label is not None})
    try:
        return LabelSet(tuple(names))
    except ValueError as error:
        raise DataError(f"{path}: {error}. Mend the labels there.") from error


def _parse_line(line: str, source: str, labels: LabelSet | None, repairs: Counter[str]) -> Dialogue:
    # Escapes such as \u0092 hide damage from the repair of lines, so strings are mended once more.
    return _parse_dialogue(parse_json_line(line, source), source, labels, partial(mend, repairs=repairs))


def _parse_dialogue(value: Any, source: str, labels: LabelSet | None, clean: Callable[[str], str]) -> Dialogue:
    _check_keys(value, "dialogue", DIALOGUE_KEYS, required=("id", "utterances"), source=source)
    id = _check_id(value["id"], "dialogue", source)
    if not isinstance(value["utterances"], list):
        raise DataError(f"{source}: 'utterances' of dialogue {id!r} is {value['utterances']!r:.80}, expected a list.")
    utterances = tuple(
        _parse_utterance(part, f"{id}-{turn:02d}", source, labels, clean)
        for turn, part in enumerate(value["utterances"])
    )
    session, begins = value.get("session"), value.get("begins", 0)
    if not isinstance(session, str | None):
        raise DataError(f"{source}: 'session' of dialogue {id!r} is {session!r}, expected a name or null.")
    if type(begins) is not int:
        raise DataError(f"{source}: 'begins' of dialogue {id!r} is {begins!r}, expected a whole number.")
    if "begins" in value and session is None:
        raise DataError(f"{source}: dialogue {id!r} has 'begins' but no 'session' in which it does. Name the session.")
    dialogue = Dialogue(id, utterances, session, begins, source)
    _refuse_surrogates(dialogue)
    return dialogue


def _parse_utterance(
    value: Any, id: str, source: str, labels: LabelSet | None, clean: Callable[[str], str]
) -> Utterance:
    _check_keys(value, f"utterance {id!r}", UTTERANCE_KEYS, required=("speaker", "text"), source=source)
    id = _check_id(value.get("id", id), "utterance", source)
    speaker, text, label = value["speaker"], value["text"], value.get("label")
    names = [speaker] if isinstance(speaker, str) else speaker
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{source}: 'speaker' of {id!r} is {speaker!r:.80}, expected a name or a list of names.")
    if not isinstance(text, str):
        raise DataError(f"{source}: 'text' of {id!r} is {text!r:.80}, expected a string.")
    if not isinstance(label, str | None):
        raise DataError(f"{source}: 'label' of {id!r} is {label!r:.80}, expected a label or null.")
    return build_utterance(id, map(clean, names), clean(text), label, labels, source)


def _check_keys(value: Any, what: str, known: tuple[str, ...], required: tuple[str, ...], source: str) -> None:
    if not isinstance(value, dict):
        raise DataError(f"{source}: {what} is {value!r:.80}, expected an object with {', '.join(known)}.")
    for key in value:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else " Remove it."
            raise DataError(f"{source}: {what} has the unknown key {key!r}; expected {', '.join(known)}.{hint}")
    for key in required:
        if key not in value:
            raise DataError(f"{source}: {what} has no {key!r}; found {', '.join(value) or 'nothing'}. Add it.")


def _check_id(id: Any, what: str, source: str) -> str:
    if not isinstance(id, str) or not id.strip():
        raise DataError(f"{source}: the id of the {what} is {id!r}, expected a string that names it.")
    return id


def _refuse_surrogates(dialogue: Dialogue) -> None:
    said = (text for u in dialogue.utterances for text in (u.id, *u.speakers, u.text, u.label or ""))
    for text in (dialogue.id, dialogue.session or "", *said):
        if SURROGATES.search(text):
            raise DataError(
                f"{dialogue.source}: {text!r} holds half a character (a lone surrogate), which no file can hold. "
                "Remove the escape, or write both halves."
            )


def _dialogue_to_json(dialogue: Dialogue) -> dict[str, Any]:
    session = {} if dialogue.session is None else {"session": dialogue.session, "begins": dialogue.begins}
    return {"id": dialogue.id, **session, "utterances": [_utterance_to_json(u) for u in dialogue.utterances]}


def _utterance_to_json(utterance: Utterance) -> dict[str, Any]:
    speakers = utterance.speakers
    return {
        "id": utterance.id,
        "speaker": speakers[0] if len(speakers) == 1 else list(speakers),
        "text": utterance.text,
        "label": utterance.label,
    }
