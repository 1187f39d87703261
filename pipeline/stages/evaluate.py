"""Evaluate: metrics of the model and of the baselines, each with its noise, and the differences paired by dialogue."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ...data.errors import DataError
from ...data.files import write_json
from ...data.labels import LabelSet
from ...retrieval.profiles import read_facts, refuse_split
from ..artefacts import load_dialogues, load_labels, load_speakers
from ..config import Config
from ..metrics import confusion_matrix, f1_scores, interval, micro_f1, resample, weighted_f1
from ..predictions import Prediction, by_dialogue, read_predictions
from ..run import Run
from .predict import ASKED

MODEL = "model"


def run(config: Config, run: Run) -> str:
    facts = read_facts(run.path("profiles", "facts.jsonl"))
    labels, metrics = load_labels(run), {}
    for split in ASKED:
        refuse_split(facts, split)
        systems = {name: read_predictions(path, labels) for name, path in _find_systems(run, split).items()}
        unseen = find_unseen(run, split)
        metrics[split] = evaluate_systems(systems, labels, config.evaluate.resamples, config.seed, unseen)
    write_json(run.path("evaluate", "metrics.json"), {"labels": list(labels), "splits": metrics})
    model = metrics["test"]["systems"][MODEL]
    low, high = model["w_f1_interval"]
    mark = " (oracle)" if model["oracle"] else ""
    return f"test W-F1 {model['w_f1']:.2f} [{low:.2f}, {high:.2f}]{mark}"


def find_unseen(run: Run, split: str) -> set[tuple[str, str]]:
    """Return dialogue and id of the utterances with a speaker of whom training has none."""
    speakers = load_speakers(run)
    return {
        (dialogue.id, utterance.id)
        for dialogue in load_dialogues(run, split)
        for utterance in dialogue.utterances
        if any(not speakers[name].seen for name in utterance.speakers)
    }


def evaluate_systems(
    systems: dict[str, list[Prediction]],
    labels: LabelSet,
    resamples: int,
    seed: int,
    unseen: Collection[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Return the metrics of systems that answered the same utterances, "model" compared with the others.

    `unseen` are the utterances, by dialogue and id, of speakers that training does not have; they are scored apart too.
    Scores are in percent, with 95 % intervals by resampling dialogues. Raises DataError where two systems answered
    other utterances, or where nothing is labelled.
    """
    confusions = {name: count_by_dialogue(predictions, labels) for name, predictions in systems.items()}
    gold = {name: [(p.dialogue, p.utterance, p.gold) for p in predictions] for name, predictions in systems.items()}
    for name in systems:
        if gold[name] != gold[MODEL]:
            raise DataError(
                f"{name!r} answered other utterances than the model, or has other gold labels for them; systems are "
                "compared on the same ones. Run the predict and baselines stages again."
            )
    if not confusions[MODEL].sum():
        raise DataError("no utterance is labelled, so nothing can be evaluated. Run the stages up to predict only.")
    drawn = {name: weighted_f1(resample(matrices, resamples, seed)) for name, matrices in confusions.items()}
    measured = {name: _measure(matrices.sum(axis=0), labels) for name, matrices in confusions.items()}
    for name, result in measured.items():
        apart = [
            [p for p in systems[name] if ((p.dialogue, p.utterance) in unseen) is which] for which in (False, True)
        ]
        result["w_f1_seen"], result["w_f1_unseen"] = (_score(predictions, labels) for predictions in apart)
        result["oracle"] = any(prediction.oracle for prediction in systems[name])
        result["w_f1_interval"] = interval(drawn[name])
        if name != MODEL:
            result["model_minus_this"] = {
                "w_f1": measured[MODEL]["w_f1"] - result["w_f1"],
                "interval": interval(drawn[MODEL] - drawn[name]),
            }
    utterances = int(confusions[MODEL].sum())
    counted = sum(p.gold is not None and (p.dialogue, p.utterance) in unseen for p in systems[MODEL])
    return {
        "dialogues": len(confusions[MODEL]),
        "utterances": utterances,
        "of_unseen_speakers": counted,
        "systems": measured,
    }


def _find_systems(run: Run, split: str) -> dict[str, Any]:
    found = {MODEL: run.path("predict", f"{split}.jsonl")}
    oracle = run.path("predict", f"{split}.oracle.jsonl")
    if oracle.is_file():
        found["gold history"] = oracle
    for path in sorted(run.path("baselines").glob(f"{split}.*.jsonl")):
        found[path.name.split(".")[1]] = path
    return found


def count_by_dialogue(predictions: Sequence[Prediction], labels: LabelSet) -> np.ndarray:
    """Return one confusion matrix a dialogue that has a labelled utterance, shape (dialogues, labels, labels)."""
    matrices = []
    for answers in by_dialogue(predictions).values():
        pairs = [(labels.index(a.gold), labels.index(a.label)) for a in answers if a.gold is not None]
        if pairs:
            gold, answered = zip(*pairs, strict=True)
            matrices.append(confusion_matrix(gold, answered, len(labels)))
    return np.array(matrices) if matrices else np.zeros((1, len(labels), len(labels)), dtype=np.int64)


def _score(predictions: Sequence[Prediction], labels: LabelSet) -> float | None:
    """Return W-F1, None where nothing is labelled."""
    confusion = count_by_dialogue(predictions, labels).sum(axis=0)
    return float(weighted_f1(confusion)) if confusion.any() else None


def _measure(confusion: np.ndarray, labels: LabelSet) -> dict[str, Any]:
    hits, f1 = np.diag(confusion), f1_scores(confusion)
    precision = 100 * hits / np.maximum(confusion.sum(axis=0), 1)
    recall = 100 * hits / np.maximum(confusion.sum(axis=1), 1)
    neutral = labels.neutral
    micro = {"micro_f1_without_neutral": float(micro_f1(confusion, labels.index(neutral)))} if neutral else {}
    return {
        "w_f1": float(weighted_f1(confusion)),
        "macro_f1": float(f1.mean()),
        **micro,
        "accuracy": 100 * float(hits.sum() / max(confusion.sum(), 1)),
        "per_class": {
            label: {
                "precision": float(precision[place]),
                "recall": float(recall[place]),
                "f1": float(f1[place]),
                "support": int(confusion[place].sum()),
            }
            for place, label in enumerate(labels)
        },
        "confusion": confusion.tolist(),
    }
