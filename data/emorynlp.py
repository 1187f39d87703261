"""EmoryNLP emotion detection (Zahiri and Choi 2018, arXiv:1708.04299) in the three forms in which it circulates."""

import ast
import json
import re
import warnings
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from .dialogue import Dialogue, Utterance
from .errors import DataError
from .files import decode_json
from .labels import EMORYNLP, LabelSet
from .reading import build_utterance, group_turns, name_episode, name_split, read_number, read_table
from .text import mend, read_text

COLUMNS = ("Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode")


def read_json(path: Path, labels: LabelSet = EMORYNLP) -> tuple[list[Dialogue], Counter[str]]:
    """Read a split of the official release: a dialogue is a scene, ids are the official ones (s01_e15_c01_u001).

    A session is an episode, here and in the CSV form.
    """
    text, repairs = read_text(path)
    try:
        content = decode_json(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg}). Fetch or mend the file.") from error
    places = {id: f"{path}:{line}" for id, line in _find_lines(text).items()}
    dialogues, start = [], f"{path}:1"
    for episode in _take(content, "episodes", list, start):
        session = _take(episode, "episode_id", str, start)
        above = places.get(session, start)
        for place, scene in enumerate(_take(episode, "scenes", list, above)):
            scene_id = _take(scene, "scene_id", str, above)
            above = source = places.get(scene_id, above)
            utterances = []
            for value in _take(scene, "utterances", list, source):
                id = _take(value, "utterance_id", str, f"{above}: scene {scene_id}")
                above = places.get(id, above)
                utterances.append(_read_utterance(value, id, labels, above, repairs))
            dialogues.append(Dialogue(scene_id, tuple(utterances), session, place, source))
    return dialogues, repairs


def read_lines(path: Path, labels: LabelSet = EMORYNLP) -> tuple[list[Dialogue], Counter[str]]:
    """Read a split as lines of speaker, text and emotion between tabs, with a blank line between dialogues.

    Ids count from 0 in file order: dialogue train-0000, utterance train-0000-00. Only the first of several speakers
    stands in these files.
    """
    text, repairs = read_text(path)
    numbered = enumerate(text.split("\n"), start=1)
    blocks = [list(block) for blank, block in groupby(numbered, key=lambda pair: not pair[1].strip()) if not blank]
    dialogues = []
    for position, block in enumerate(blocks):
        id = f"{name_split(path)}-{position:04d}"
        utterances = tuple(
            _read_line(line, f"{id}-{turn:02d}", labels, f"{path}:{number}")
            for turn, (number, line) in enumerate(block)
        )
        dialogues.append(Dialogue(id, utterances, source=utterances[0].source))
    return dialogues, repairs


def read_csv(path: Path, labels: LabelSet = EMORYNLP) -> tuple[list[Dialogue], Counter[str]]:
    """Read a split of the CSV form (utterances with video only); ids are those of the official release."""
    rows, repairs = read_table(path, COLUMNS)
    sessions = {_name_scene(row, source): _find_scene(row, source) for source, row in rows}
    return group_turns((_read_row(row, labels, source) for source, row in rows), sessions), repairs


def _read_utterance(value: Any, id: str, labels: LabelSet, source: str, repairs: Counter[str]) -> Utterance:
    # Escapes such as \u0092 hide damage from the repair of lines, so strings are mended once more.
    names = _take(value, "speakers", list, source)
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{source}: 'speakers' is {names!r:.80}, expected a list of names. Mend it.")
    speakers = [mend(name, repairs) for name in names]
    text = mend(_take(value, "transcript", str, source), repairs)
    return build_utterance(id, speakers, text, _take(value, "emotion", str, source), labels, source)


def _read_line(line: str, id: str, labels: LabelSet, source: str) -> Utterance:
    fields = line.split("\t")
    if len(fields) != 3:
        raise DataError(f"{source}: {len(fields)} fields, expected 3: speaker, text and emotion between tabs.")
    speaker, text, label = fields
    return build_utterance(id, [speaker], text, label, labels, source)


def _read_row(row: dict[str, str], labels: LabelSet, source: str) -> tuple[str, int, Utterance]:
    scene_id, turn = _name_scene(row, source), read_number(row, "Utterance_ID", source)
    speakers = _parse_speakers(row["Speaker"], source)
    id = f"{scene_id}_u{turn:03d}"
    return scene_id, turn, build_utterance(id, speakers, row["Utterance"], row["Emotion"], labels, source)


def _find_scene(row: dict[str, str], source: str) -> tuple[str, int]:
    """Return the episode of a row and the number of its scene."""
    return name_episode(row, source), read_number(row, "Scene_ID", source)


def _name_scene(row: dict[str, str], source: str) -> str:
    episode, scene = _find_scene(row, source)
    return f"{episode}_c{scene:02d}"


def _parse_speakers(cell: str, source: str) -> list[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of backslashes
            speakers = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        speakers = None
    if not isinstance(speakers, list) or not all(isinstance(name, str) for name in speakers):
        expected = """expected a list in quotes such as "['Monica Geller']"."""
        raise DataError(f"{source}: Speaker is {cell!r:.80}, {expected}")
    return speakers


def _take(value: Any, key: str, kind: type, source: str) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(key), kind):
        found = f"keys {', '.join(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise DataError(
            f"{source}: expected an object with {key!r} (a {kind.__name__}), found {found}. "
            "Is this the official release of EmoryNLP?"
        )
    return value[key]


def _find_lines(text: str) -> dict[str, int]:
    """Return the line on which each id stands: the json module does not say."""
    lines: dict[str, int] = {}
    line, end = 1, 0
    for match in re.finditer(r'"(?:episode|scene|utterance)_id"\s*:\s*("(?:[^"\\]|\\.)*")', text):
        line += text.count("\n", end, match.start())
        end = match.start()
        lines[json.loads(match[1])] = line
    return lines
