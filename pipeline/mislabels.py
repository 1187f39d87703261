"""Mislabels: the training utterances whose gold label surprises the trained model most, for somebody to look at."""

import csv
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from heapq import nlargest
from pathlib import Path

from ..data.files import replace_atomically
from ..prompts.tree import gold_emotions
from .artefacts import load_dialogues, load_trees, require_output
from .recognizer import Recognizer
from .run import Run


@dataclass(frozen=True, slots=True)
class Surprise:
    """A training utterance and what the model makes of it; `loss` is that of its gold label, in nats."""

    loss: float
    gold: str
    gold_probability: float
    answer: str
    probability: float
    dialogue: str
    utterance: str
    turn: int
    speaker: str
    text: str


def find_mislabels(
    folder: Path, seed: int | None, count: int, *, trust_remote_code: bool = False
) -> tuple[Path, list[Surprise]]:
    """Write `mislabels.csv` beside the adapter of a seed: the utterances of highest loss, the highest first.

    Returns the file and its rows. They are asked as in training, told gold recent emotions, without a memory.
    Raises DataError where the folder is no run with an adapter, or was changed since.
    """
    recognizer = Recognizer.load(folder, seed, trust_remote_code=trust_remote_code)
    run = Run(folder, recognizer.config.seed)
    require_output(run, "ingest", "dialogues.train.jsonl")
    require_output(run, "prompts", "train.jsonl")
    found = nlargest(count, _answer_training(recognizer, run), key=lambda surprise: surprise.loss)
    path = run.path("train").with_name("mislabels.csv")
    with replace_atomically(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Surprise)])
        writer.writeheader()
        writer.writerows(asdict(one) for one in found)
    return path, found


def _answer_training(recognizer: Recognizer, run: Run) -> Iterator[Surprise]:
    texts = {(d.id, u.id): u.text for d in load_dialogues(run, "train") for u in d.utterances}
    wording = recognizer.task.wording
    gold = gold_emotions(load_trees(run, "train", wording))
    total = sum(map(len, gold.values()))
    for answer in recognizer.answer(load_trees(run, "train", wording), gold, total):
        branch, probabilities = answer.branch, dict(zip(recognizer.task.labels, answer.probabilities, strict=True))
        label = str(branch.label)
        yield Surprise(
            loss=-math.log(max(probabilities[label], sys.float_info.min)),
            gold=label,
            gold_probability=probabilities[label],
            answer=answer.label,
            probability=probabilities[answer.label],
            dialogue=answer.dialogue,
            utterance=branch.utterance,
            turn=branch.turn,
            speaker=branch.speaker,
            text=texts[answer.dialogue, branch.utterance],
        )
