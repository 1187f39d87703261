"""Score: the metrics of anybody's answers, without a model.

Answers are CSV or JSON Lines. Each has a `label` and says which utterance it is for: by `dialogue` and `turn`, which
counts from 0, or by the id of the `utterance` (`id` for short), with its `dialogue` where ids are not unique. An id may
also be DIALOGUE/TURN. erckit's own predictions are of this form. Calibration is measured where all have probabilities.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

from ..data.corpus import check_dialogue_ids, read_corpus
from ..data.dialogue import Dialogue
from ..data.erckit_jsonl import read_labels, read_split
from ..data.errors import DataError
from ..data.files import parse_json_line
from ..data.labels import LabelSet
from ..data.reading import LONGEST, read_table
from ..data.speakers import SpeakerRegistry, find_aliases, identify_speakers
from ..data.text import read_text
from .config import Evaluate
from .groups import TITLES as GROUPS
from .groups import group_utterances
from .metrics import TITLES
from .predictions import Prediction
from .stages.evaluate import MODEL, evaluate_systems
from .stages.ingest import find_corpus
from .tables import format_interval, write_table

SEED = 1  # of the resamples

Name: TypeAlias = tuple[str] | tuple[str, str] | tuple[str, int]
"""What may name an utterance: an id, a dialogue with an id, a dialogue with a turn."""
Place: TypeAlias = tuple[int, int]
"""Where an utterance is: the place of its dialogue, and its turn."""


def score_answers(path: Path, gold: Path, split: str) -> dict[str, Any]:
    """Return the metrics of the answers in a file, as metrics.json has them of a system, and on how much they are.

    `gold` is the folder of a corpus, "sample", or a file of dialogues in erckit's form. Raises DataError with the line
    for an answer that is broken, double or to no utterance, and where a labelled utterance has none.
    """
    dialogues, labels, speakers = read_gold(gold, split)
    answers = read_answers(path, dialogues, labels)
    groups = group_utterances(dialogues, speakers)
    found = evaluate_systems({MODEL: answers}, labels, Evaluate().resamples, SEED, groups)
    return {key: found[key] for key in ("dialogues", "utterances")} | found["systems"][MODEL]


def describe_scores(found: Mapping[str, Any]) -> str:
    """Return what `score_answers` found as Markdown."""
    oracle = ", of an oracle" if found["oracle"] else ""
    scores = [
        [title, f"{found[name]:.2f}", format_interval(found[f"{name}_interval"])]
        for name, title in TITLES.items()
        if name in found
    ]
    if calibration := found.get("calibration"):
        scores.append(["ECE", f"{calibration['ece']:.2f}", format_interval(calibration["ece_interval"])])
        brier, (low, high) = calibration["brier"], calibration["brier_interval"]
        scores.append(["Brier score", f"{brier:.3f}", f"[{low:.3f}, {high:.3f}]"])
    classes = [
        [label, *(f"{one[key]:.2f}" for key in ("precision", "recall", "f1")), f"{one['support']:,}"]
        for label, one in found["per_class"].items()
    ]
    groups = [
        [
            GROUPS[kind][name],
            f"{one['utterances']:,}",
            *(f"{one[score]:.2f} {format_interval(one[f'{score}_interval'])}" for score in ("accuracy", "w_f1")),
        ]
        for kind, members in found["groups"].items()
        for name, one in members.items()
    ]
    return "\n".join(
        [
            f"{found['utterances']:,} labelled utterances in {found['dialogues']:,} dialogues{oracle}\n",
            write_table(["score", "value", "95 % interval"], scores),
            write_table(["emotion", "precision", "recall", "F1", "support"], classes),
            write_table(["utterances", "count", "accuracy", "W-F1"], groups),
        ]
    )


def read_gold(path: Path, split: str) -> tuple[Sequence[Dialogue], LabelSet, SpeakerRegistry | None]:
    """Return the dialogues of a split with their labels, and the speakers; of a file alone nobody knows these."""
    if not path.is_file():
        corpus = read_corpus(find_corpus(str(path)))
        corpus, speakers = identify_speakers(corpus, find_aliases(corpus.name))
        return corpus.dialogues[split], corpus.labels, speakers
    labels = read_labels(path.parent, "train.jsonl" if (path.parent / "train.jsonl").is_file() else path.name)
    dialogues, _ = read_split(path, labels)
    check_dialogue_ids(dialogues)
    return dialogues, labels, None


def read_answers(path: Path, dialogues: Sequence[Dialogue], labels: LabelSet) -> list[Prediction]:
    """Return the answers of a file, in the order of the dialogues; those to unlabelled utterances may be missing."""
    places = _find_places(dialogues)
    found: dict[Place, tuple[str, Prediction]] = {}
    for source, record in _read_records(path):
        place = _locate(_name(record, source), places, dialogues, source)
        prediction = _build_prediction(record, dialogues[place[0]], place[1], labels, source)
        if place in found:
            raise DataError(
                f"{source}: a second answer to {_describe(place, dialogues)}, the first is {found[place][0]}. "
                "Keep one of the two."
            )
        found[place] = (source, prediction)
    labelled = [
        (place, turn)
        for place, dialogue in enumerate(dialogues)
        for turn, utterance in enumerate(dialogue.utterances)
        if utterance.label is not None
    ]
    if missing := [place for place in labelled if place not in found]:
        dialogue, turn = missing[0]
        raise DataError(
            f"{path}: no answer to {len(missing):,} of {len(labelled):,} labelled utterances, the first of them "
            f"{_describe(missing[0], dialogues)}, {dialogues[dialogue].utterances[turn].source}. Add them."
        )
    return [found[place][1] for place in sorted(found)]


def _find_places(dialogues: Sequence[Dialogue]) -> dict[Name, list[Place]]:
    places: dict[Name, list[Place]] = defaultdict(list)
    for place, dialogue in enumerate(dialogues):
        for turn, utterance in enumerate(dialogue.utterances):
            # A set: an id may look like its own DIALOGUE/TURN.
            names: set[Name] = {(utterance.id,), (f"{dialogue.id}/{turn}",)}
            for name in names | {(dialogue.id, utterance.id), (dialogue.id, turn)}:
                places[name].append((place, turn))
    return dict(places)


def _read_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ("file:line", values by name) for every answer."""
    if path.suffix.lower() == ".csv":
        yield from read_table(path, ("label",))[0]
        return
    for number, line in enumerate(read_text(path)[0].split("\n"), start=1):
        if line.strip():
            record = parse_json_line(line, f"{path}:{number}")
            if not isinstance(record, dict):
                raise DataError(
                    f"{path}:{number}: found {record!r:.80}, expected an object with an utterance and a label."
                )
            yield f"{path}:{number}", record


def _name(record: Mapping[str, Any], source: str) -> Name:
    dialogue, turn = record.get("dialogue"), record.get("turn")
    id = record.get("utterance", record.get("id"))
    if id not in (None, ""):
        return (str(id),) if dialogue in (None, "") else (str(dialogue), str(id))
    if dialogue in (None, "") or turn in (None, ""):
        raise DataError(
            f"{source}: names no utterance, found {', '.join(record)}. Expected `utterance`, or `dialogue` and `turn`."
        )
    if not str(turn).strip().isdecimal() or len(str(turn)) > LONGEST:
        raise DataError(f"{source}: turn is {turn!r:.80}, expected a whole number from 0 on. Mend it.")
    return (str(dialogue), int(turn))


def _locate(name: Name, places: Mapping[Name, list[Place]], dialogues: Sequence[Dialogue], source: str) -> Place:
    found = places.get(name, [])
    said = "/".join(map(str, name))
    if len(found) > 1:
        several = " and ".join(_describe(place, dialogues) for place in found[:2])
        raise DataError(
            f"{source}: {said!r} names {len(found)} utterances, such as {several}. Give its `dialogue` too."
        )
    if not found:
        near = get_close_matches(said, ["/".join(map(str, other)) for other in places], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else " Are these answers to another split?"
        raise DataError(f"{source}: there is no utterance {said!r}; turns count from 0.{hint}")
    return found[0]


def _build_prediction(
    record: Mapping[str, Any], dialogue: Dialogue, turn: int, labels: LabelSet, source: str
) -> Prediction:
    utterance, label = dialogue.utterances[turn], record.get("label")
    if not isinstance(label, str):
        raise DataError(f"{source}: label is {label!r}, expected one of {', '.join(labels)}.")
    return Prediction(
        dialogue=dialogue.id,
        utterance=utterance.id,
        turn=turn,
        speaker=utterance.speaker,
        text=utterance.text,
        gold=utterance.label,
        label=labels.parse(label, source),
        probabilities=_check_probabilities(record.get("probabilities"), labels, source),
        oracle=record.get("oracle") is True,
    )


def _check_probabilities(found: Any, labels: LabelSet, source: str) -> dict[str, float]:
    """Return one for each label in order, or none where there are none."""
    if not found or isinstance(found, str):
        return {}
    if not isinstance(found, dict) or found.keys() != set(labels):
        raise DataError(f"{source}: probabilities is {found!r:.200}, expected one for each of {', '.join(labels)}.")
    values = list(found.values())
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 0.01:
        raise DataError(
            f"{source}: probabilities are {values}, expected numbers that sum to 1. Mend or leave them out."
        )
    return {label: float(found[label]) for label in labels}


def _describe(place: Place, dialogues: Sequence[Dialogue]) -> str:
    dialogue = dialogues[place[0]]
    return f"{dialogue.utterances[place[1]].id!r} (turn {place[1]} of {dialogue.id!r})"
