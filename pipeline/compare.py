"""Two runs side by side: how far apart they are, whether chance explains it, and where they disagree.

A run with several seeds counts as the mean of their scores, within every resample and every swap: seed 1 of one run has
no more to do with seed 1 of another than with seed 2. So the noise is that of the dialogues, and how far seeds lie
apart is told beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from ..data.errors import DataError
from ..data.files import write_json, write_text
from ..data.labels import LabelSet
from .artefacts import load_labels, require_output
from .config import load_config
from .manifest import MANIFEST, explain_difference, read_manifest
from .metrics import TITLES, Score, choose_scores, deviate, f1_scores, interval, p_value, resample, swap
from .predictions import Prediction, read_predictions
from .report.comparison import render_comparison
from .run import Run
from .stages.evaluate import count_by_dialogue
from .tables import format_interval, format_mean, write_table

CHANGES = 20  # utterances listed


@dataclass(frozen=True, slots=True)
class Answers:
    """What a run answers to a split, with each seed the same utterances in the same order."""

    folder: Path
    labels: LabelSet
    seeds: tuple[int, ...]
    by_seed: tuple[list[Prediction], ...]

    def count(self) -> np.ndarray:
        """Return confusion matrices, shape (dialogues, seeds, labels, labels)."""
        return np.stack([count_by_dialogue(answers, self.labels) for answers in self.by_seed], axis=1)

    def average(self) -> np.ndarray:
        """Return the probability of each label, the mean over seeds, shape (utterances, labels)."""
        return np.mean([[list(one.probabilities.values()) for one in answers] for answers in self.by_seed], axis=0)

    def share(self) -> np.ndarray:
        """Return the share of seeds that answer each label, shape (utterances, labels)."""
        places = np.array([[self.labels.index(one.label) for one in answers] for answers in self.by_seed])
        return np.eye(len(self.labels))[places].mean(axis=0)

    def describe(self) -> dict[str, Any]:
        oracle = any(one.oracle for answers in self.by_seed for one in answers)
        return {"run": str(self.folder), "seeds": list(self.seeds), "oracle": oracle}


def compare_runs(folder_a: Path, folder_b: Path, split: str) -> dict[str, Any]:
    """Return how run B differs from run A on a split: scores, which is right where, and the largest changes.

    Differences are B's score minus A's in percent, with 95 % intervals by resampling dialogues, the same ones for both,
    and two-sided p-values by swapping the answers to whole dialogues.
    Raises DataError where a folder has no answers to the split, and where the two answered other utterances.
    """
    a, b = read_answers(folder_a, split), read_answers(folder_b, split)
    check_same_utterances(a, b)
    config = load_config(str(folder_a / "config.yaml"))
    counts = a.count(), b.count()
    if not counts[0].any():
        raise DataError(f"{folder_a}: no utterance of {split} is labelled, so nothing can be compared.")
    return {
        "split": split,
        "a": a.describe(),
        "b": b.describe(),
        "dialogues": len(counts[0]),
        "utterances": int(counts[0][:, 0].sum()),
        "resamples": config.evaluate.resamples,
        "scores": measure_difference(*counts, choose_scores(a.labels), config.evaluate.resamples, config.seed),
        "f1": measure_difference(*counts, _f1_by_label(a.labels), config.evaluate.resamples, config.seed),
        **find_agreement(a, b),
        "changes": find_changes(a, b),
    }


def write_comparison(folder: Path, findings: Mapping[str, Any]) -> None:
    """Write compare.json, compare.md and the page compare.html."""
    write_json(folder / "compare.json", findings)
    write_text(folder / "compare.md", describe_comparison(findings))
    write_text(folder / "compare.html", render_comparison(findings, TITLES))


def describe_comparison(findings: Mapping[str, Any]) -> str:
    """Return what `compare_runs` found as Markdown."""
    several = any(len(findings[run]["seeds"]) > 1 for run in "ab")
    who = [
        f"- {run.upper()}: {found['run']}{' (oracle)' if found['oracle'] else ''}, "
        f"seed{'s' if len(found['seeds']) > 1 else ''} {', '.join(map(str, found['seeds']))}\n"
        for run in "ab"
        for found in [findings[run]]
    ]
    scores = [
        [
            TITLES[name],
            *(format_mean(one[run], one[f"{run}_deviation"]) for run in "ab"),
            f"{one['b_minus_a']:+.2f} {format_interval(one['interval'], '+')}",
            f"{one['p']:.4f}",
        ]
        for name, one in findings["scores"].items()
    ]
    right = [
        [
            label,
            *(f"{one[key]:,.1f}" if several else f"{one[key]:,.0f}" for key in ("both", "only_a", "only_b", "neither")),
        ]
        for label, one in findings["right"].items()
    ]
    changes = [
        [
            f"{one['b_minus_a']:+.2f}",
            one["gold"],
            *(f"{one[run]['label']} ({one[run]['gold_probability']:.2f})" for run in "ab"),
            f"{one['dialogue']}/{one['turn']}",
            shorten(f"{one['speaker']}: {one['text']}", 120, placeholder=" ..."),
        ]
        for one in findings["changes"]
    ]
    return "\n".join(
        [
            f"{findings['split']}: {findings['utterances']:,} utterances in {findings['dialogues']:,} dialogues\n",
            *["".join(who)],
            write_table(["score", "A", "B", "B - A, 95 % interval", "p"], scores),
            f"Whose answers are right{', on average over seeds' if several else ''}:\n",
            write_table(["gold", "both", "A alone", "B alone", "neither"], right),
            "Where the probability of the gold label changed most, with the answer of each and that probability:\n",
            write_table(["B - A", "gold", "A", "B", "dialogue/turn", "utterance"], changes),
        ]
    )


def read_answers(folder: Path, split: str) -> Answers:
    """Read the answers of all finished seeds of a run.

    Raises DataError where there are none, where they were changed since, and where seeds are of different makes.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{folder}: not a run, it has no config.yaml. Name the folder of one, such as runs/sample.")
    seeds = [seed for seed in Run(folder, 1).find_seeds() if Run(folder, seed).path("predict", MANIFEST).is_file()]
    if not seeds:
        raise DataError(f"{folder}: no finished answers, expected seed-N/predict. Use `erckit run` to make them.")
    run = Run(folder, seeds[0], tuple(seeds))
    _check_made_alike(run)
    require_output(run, "ingest", "labels.json")
    for one in run.of_each_seed():
        require_output(one, "predict", f"{split}.jsonl")
    labels = load_labels(run)
    paths = [one.path("predict", f"{split}.jsonl") for one in run.of_each_seed()]
    return Answers(folder, labels, run.seeds, tuple(read_predictions(path, labels) for path in paths))


def check_same_utterances(a: Answers, b: Answers) -> None:
    """Raise DataError where anybody answered other utterances than the first seed of A, or knows other labels."""
    if a.labels != b.labels:
        raise DataError(
            f"{b.folder}: the labels are {', '.join(b.labels)}; expected {', '.join(a.labels)}, as in {a.folder}. "
            "Compare runs over the same corpus."
        )
    expected = [(one.dialogue, one.utterance, one.gold) for one in a.by_seed[0]]
    for run in (a, b):
        for answers in run.by_seed:
            found = [(one.dialogue, one.utterance, one.gold) for one in answers]
            if found != expected:
                pairs = zip(_name(expected, len(found)), _name(found, len(expected)), strict=True)
                wanted, other = next(pair for pair in pairs if pair[0] != pair[1])
                raise DataError(
                    f"{run.folder}: {len(found):,} answers, expected {len(expected):,} to the utterances of "
                    f"{a.folder}; the first that differs: found {other}, expected {wanted}. Compare runs over the same "
                    "corpus."
                )


def measure_difference(
    a: np.ndarray, b: np.ndarray, scores: Mapping[str, Score], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Return each score of two runs and their difference; confusions have shape (dialogues, seeds, labels, labels)."""
    drawn = [resample(counts, resamples, seed) for counts in (a, b)]
    # A dialogue is swapped with all seeds; those of the run with fewer are repeated, which leaves its mean as it is.
    seeds = lcm(a.shape[1], b.shape[1])
    repeated_a, repeated_b = (np.tile(counts, (1, seeds // counts.shape[1], 1, 1)) for counts in (a, b))
    swapped = swap(repeated_a, repeated_b, resamples, seed)
    measured = {}
    for name, score in scores.items():
        of_a, of_b = (score(counts.sum(axis=0)) for counts in (a, b))
        drawn_a, drawn_b = (score(counts).mean(axis=1) for counts in drawn)
        swapped_a, swapped_b = (score(counts).mean(axis=1) for counts in swapped)
        difference = float(of_b.mean() - of_a.mean())
        measured[name] = {
            "a": float(of_a.mean()),
            "a_interval": interval(drawn_a),
            "a_deviation": deviate(of_a),
            "b": float(of_b.mean()),
            "b_interval": interval(drawn_b),
            "b_deviation": deviate(of_b),
            "b_minus_a": difference,
            "interval": interval(drawn_b - drawn_a),
            "p": p_value(difference, swapped_b - swapped_a),
        }
    return measured


def find_agreement(a: Answers, b: Answers) -> dict[str, Any]:
    """Return who answers what, and by gold label how many utterances both, one alone and neither answer rightly.

    `answers` has a row for each answer of A and a column for each of B; `same` is the share on which they agree. With
    several seeds all are means over all pairs of a seed of A and one of B; unlabelled utterances do not count.
    """
    gold = np.array([-1 if one.gold is None else a.labels.index(one.gold) for one in a.by_seed[0]])
    share_a, share_b = a.share(), b.share()
    answers = share_a[gold >= 0].T @ share_b[gold >= 0]
    right = {}
    for place, label in enumerate(a.labels):
        of_a, of_b = share_a[gold == place, place], share_b[gold == place, place]
        right[label] = {
            "both": float(of_a @ of_b),
            "only_a": float(of_a @ (1 - of_b)),
            "only_b": float((1 - of_a) @ of_b),
            "neither": float((1 - of_a) @ (1 - of_b)),
        }
    return {"same": float(np.trace(answers) / answers.sum()), "answers": answers.tolist(), "right": right}


def find_changes(a: Answers, b: Answers) -> list[dict[str, Any]]:
    """Return the utterances whose gold label differs most in probability, the mean over seeds, the largest first."""
    average_a, average_b = a.average(), b.average()
    names = a.labels.names
    changes = [
        {
            "dialogue": one.dialogue,
            "utterance": one.utterance,
            "turn": one.turn,
            "speaker": one.speaker,
            "text": one.text,
            "gold": one.gold,
            "b_minus_a": float(of_b[place] - of_a[place]),
            "a": {"label": names[int(of_a.argmax())], "gold_probability": float(of_a[place])},
            "b": {"label": names[int(of_b.argmax())], "gold_probability": float(of_b[place])},
        }
        for one, of_a, of_b in zip(a.by_seed[0], average_a, average_b, strict=True)
        if one.gold is not None
        for place in [a.labels.index(one.gold)]
    ]
    return sorted(changes, key=lambda change: -abs(change["b_minus_a"]))[:CHANGES]


def _f1_by_label(labels: LabelSet) -> dict[str, Score]:
    return {label: lambda counts, place=place: f1_scores(counts)[..., place] for place, label in enumerate(labels)}


def _check_made_alike(run: Run) -> None:
    """Raise DataError where the seeds of a run were not trained and asked in the same way: some are of an older run."""
    for stage in ("train", "predict"):
        folders = {one.seed: one.path(stage) for one in run.of_each_seed()}
        made = {seed: folder for seed, folder in folders.items() if (folder / MANIFEST).is_file()}
        records = {seed: _keep_shared(read_manifest(folder)) for seed, folder in made.items()}
        for seed, record in records.items():
            if record != records[run.seed]:
                raise DataError(
                    f"{run.folder}: seed {seed} was made otherwise than seed {run.seed} "
                    f"({explain_difference(record, records[run.seed])}). Bring them up to date with `erckit run CONFIG "
                    f"--seeds N`, or remove seed-{seed}."
                )


def _keep_shared(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what a manifest records of the making, but for what is a seed's own."""
    inputs = {path: digest for path, digest in manifest["inputs"].items() if not path.startswith("seed-")}
    return {"inputs": inputs, **{key: manifest[key] for key in ("erckit", "config", "fingerprint")}}


def _name(utterances: list[tuple[str, str, str | None]], length: int) -> list[str]:
    """Name utterances with their gold labels, and fill up to `length`."""
    named = [f"{dialogue}/{id} ({gold or 'no gold label'})" for dialogue, id, gold in utterances]
    return named + ["no more"] * (length - len(named))
