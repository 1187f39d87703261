"""Evaluate: metrics of the model and of the baselines, each with its noise, and the differences paired by dialogue."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ...data.errors import DataError
from ...data.files import write_json
from ...data.labels import LabelSet
from ...retrieval.profiles import read_facts, refuse_split
from ..artefacts import load_dialogues, load_labels, load_speakers
from ..calibration import measure_calibration
from ..config import Config
from ..groups import TITLES as GROUPS
from ..groups import Groups, Key, group_utterances
from ..metrics import SCORES, Score, choose_scores, f1_scores, interval, keep_occurring, resample, weighted_f1
from ..predictions import Prediction, read_predictions
from ..run import Run

MODEL = "model"


def run(config: Config, run: Run) -> str:
    facts = read_facts(run.path("profiles", "facts.jsonl"))
    labels, metrics = load_labels(run), {}
    for split in config.predict.splits:
        refuse_split(facts, split)
        systems = {name: read_predictions(path, labels) for name, path in _find_systems(run, split).items()}
        groups = group_utterances(load_dialogues(run, split), load_speakers(run))
        metrics[split] = evaluate_systems(systems, labels, config.evaluate.resamples, config.seed, groups)
    write_json(run.path("evaluate", "metrics.json"), {"labels": list(labels), "splits": metrics})
    split = config.predict.splits[-1]
    model = metrics[split]["systems"][MODEL]
    low, high = model["w_f1_interval"]
    mark = " (oracle)" if model["oracle"] else ""
    return f"{split} W-F1 {model['w_f1']:.2f} [{low:.2f}, {high:.2f}]{mark}"


def fingerprint(config: Config) -> str:
    """What is measured decides too: another version of erckit may measure more."""
    return ", ".join((*SCORES, *GROUPS, "calibration"))


def evaluate_systems(
    systems: dict[str, list[Prediction]], labels: LabelSet, resamples: int, seed: int, groups: Groups | None = None
) -> dict[str, Any]:
    """Return the metrics of systems that answered the same utterances, "model" compared with the others.

    Each is measured on all labelled utterances and on each of the `groups` that has some. Scores are in percent, with
    95 % intervals by resampling dialogues; those of a group are drawn from the resamples in which it occurs.
    Calibration is measured where every answer has probabilities.
    Raises DataError where two systems answered other utterances, or where nothing is labelled.
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
    drawn = {name: resample(matrices, resamples, seed) for name, matrices in confusions.items()}
    measured = {name: _measure(confusions[name], drawn[name], labels) for name in systems}
    for name, result in measured.items():
        predictions = systems[name]
        result["oracle"] = any(prediction.oracle for prediction in predictions)
        result["groups"] = _measure_groups(predictions, labels, resamples, seed, groups or {})
        if all(prediction.probabilities for prediction in predictions):
            result["calibration"] = measure_calibration(predictions, labels, resamples, seed)
        if name != MODEL:
            result["model_minus_this"] = {
                "w_f1": measured[MODEL]["w_f1"] - result["w_f1"],
                "interval": interval(weighted_f1(drawn[MODEL]) - weighted_f1(drawn[name])),
            }
    utterances = int(confusions[MODEL].sum())
    return {"dialogues": len(confusions[MODEL]), "utterances": utterances, "systems": measured}


def count_by_dialogue(
    predictions: Sequence[Prediction], labels: LabelSet, among: Collection[Key] | None = None
) -> np.ndarray:
    """Return one confusion matrix a dialogue that has a labelled utterance, shape (dialogues, labels, labels).

    With `among`, only those utterances count, and a dialogue with none of them has zeros.
    """
    labelled = [prediction for prediction in predictions if prediction.gold is not None]
    places = {dialogue: place for place, dialogue in enumerate(dict.fromkeys(p.dialogue for p in labelled))}
    counted = [
        (places[p.dialogue], labels.index(str(p.gold)), labels.index(p.label))
        for p in labelled
        if among is None or (p.dialogue, p.utterance) in among
    ]
    matrices = np.zeros((max(1, len(places)), len(labels), len(labels)), dtype=np.int64)
    np.add.at(matrices, tuple(np.array(counted, dtype=int).reshape(-1, 3).T), 1)
    return matrices


def count_by_seed(run: Run, split: str) -> np.ndarray:
    """Return `count_by_dialogue` of the model's answers with each seed, shape (dialogues, seeds, labels, labels)."""
    labels = load_labels(run)
    paths = [one.path("predict", f"{split}.jsonl") for one in run.of_each_seed()]
    return np.stack([count_by_dialogue(read_predictions(path, labels), labels) for path in paths], axis=1)


def _find_systems(run: Run, split: str) -> dict[str, Any]:
    found = {MODEL: run.path("predict", f"{split}.jsonl")}
    oracle = run.path("predict", f"{split}.oracle.jsonl")
    if oracle.is_file():
        found["gold history"] = oracle
    for path in sorted(run.path("baselines").glob(f"{split}.*.jsonl")):
        found[path.name.split(".")[1]] = path
    return found


def _measure(matrices: np.ndarray, drawn: np.ndarray, labels: LabelSet) -> dict[str, Any]:
    """Return the scores of confusion matrices by dialogue, shape (dialogues, ...), with those drawn from them."""
    confusion = matrices.sum(axis=0)
    hits, f1 = np.diag(confusion), f1_scores(confusion)
    precision = 100 * hits / np.maximum(confusion.sum(axis=0), 1)
    recall = 100 * hits / np.maximum(confusion.sum(axis=1), 1)
    return {
        **_score(confusion, drawn, choose_scores(labels)),
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


def _measure_groups(
    predictions: Sequence[Prediction], labels: LabelSet, resamples: int, seed: int, groups: Groups
) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    for kind, members in groups.items():
        measured[kind] = {}
        for name, utterances in members.items():
            matrices = count_by_dialogue(predictions, labels, utterances)
            if matrices.any():
                confusion = matrices.sum(axis=0)
                drawn = keep_occurring(resample(matrices, resamples, seed), confusion)
                scores = _score(confusion, drawn, {name: SCORES[name] for name in ("accuracy", "w_f1")})
                measured[kind][name] = {"utterances": int(confusion.sum()), **scores}
    return measured


def _score(confusion: np.ndarray, drawn: np.ndarray, scores: Mapping[str, Score]) -> dict[str, Any]:
    """Return scores of a confusion matrix by their names, each with its interval from those drawn."""
    found: dict[str, Any] = {}
    for name, score in scores.items():
        found[name] = float(score(confusion))
        found[f"{name}_interval"] = interval(score(drawn))
    return found
