"""Predictions as files: one line an utterance, whoever made it, the model or a baseline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..data.errors import DataError
from ..data.files import read_json_lines, write_json_lines
from ..data.labels import LabelSet

ASKED = ("dev", "test")
"""The splits that are answered."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a system answers for one utterance.

    `gold` is None where nobody annotated it. `probabilities` has one for every label and sums to 1. `oracle` marks
    answers for which gold labels of the same dialogue were told. `prompt` is the text it was asked, empty for systems
    that are not asked in words, and `made_with` what the numbers may depend on (dtype, batch size).
    """

    dialogue: str
    utterance: str
    turn: int
    speaker: str
    text: str
    gold: str | None
    label: str
    probabilities: Mapping[str, float]
    oracle: bool = False
    prompt: str = ""
    made_with: Mapping[str, Any] | None = None


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> int:
    return write_json_lines(path, map(asdict, predictions))


def read_predictions(path: Path, labels: LabelSet) -> list[Prediction]:
    """Read a file of predictions. Raises DataError naming the line where one is broken or of another label set."""
    predictions = []
    for number, record in read_json_lines(path):
        try:
            prediction = Prediction(**record)
        except TypeError as error:
            raise DataError(f"{path}:{number}: not a prediction ({error}). Run the predict stage again.") from error
        labels.parse(prediction.label, f"{path}:{number}")
        if list(prediction.probabilities) != list(labels):
            raise DataError(
                f"{path}:{number}: probabilities for {', '.join(prediction.probabilities)}; expected one for each of "
                f"{', '.join(labels)}, in this order. Run the predict stage again."
            )
        predictions.append(prediction)
    return predictions


def average_answers(by_seed: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """Return what several seeds answer together: of each utterance, the label whose mean probability is highest.

    Raises DataError where they answered other utterances.
    """
    asked = [[(answer.dialogue, answer.utterance, answer.gold) for answer in answers] for answers in by_seed]
    if any(one != asked[0] for one in asked):
        raise DataError("the seeds answered other utterances, or have other gold labels. Run the predict stage again.")
    return [_average(answers) for answers in zip(*by_seed, strict=True)]


def _average(answers: Sequence[Prediction]) -> Prediction:
    mean = {
        label: sum(answer.probabilities[label] for answer in answers) / len(answers)
        for label in answers[0].probabilities
    }
    return replace(answers[0], label=max(mean, key=mean.__getitem__), probabilities=mean)


def by_dialogue(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(prediction.dialogue, []).append(prediction)
    return groups
