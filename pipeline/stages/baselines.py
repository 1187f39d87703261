"""Baselines: what simpler systems answer for the same utterances, their one free choice made on dev."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...data.dialogue import Dialogue, Utterance
from ...data.labels import LabelSet
from ...retrieval.encoder import SentenceEncoder
from ..artefacts import load_dialogues, load_labels
from ..config import Config
from ..console import progress
from ..metrics import confusion_matrix, weighted_f1
from ..predictions import ASKED, Prediction, write_predictions
from ..run import Run
from .profiles import load_vectors

STRENGTHS = (0.1, 1.0, 10.0)  # C of the logistic regression, chosen on dev, with and without class balancing


def run(config: Config, run: Run) -> str:
    labels = load_labels(run)
    splits = {split: load_dialogues(run, split) for split in ("train", *ASKED)}
    systems = {
        "majority": _answer_majority(splits, labels),
        "tfidf": _answer_logistic(splits, labels, _count_words(splits), "TF-IDF fits"),
        "encoder": _answer_logistic(splits, labels, _encode(splits, config.profiles.encoder, run), "encoder fits"),
    }
    for system, answers in systems.items():
        for split in ASKED:
            write_predictions(
                run.path("baselines", f"{split}.{system}.jsonl"), _predict(splits[split], answers[split], labels)
            )
    return f"answers of {len(systems)} baselines"


def fingerprint(config: Config) -> str:
    """The encoder's weights decide too, whatever folder they come from."""
    return SentenceEncoder(config.profiles.encoder).fingerprint


def _answer_majority(splits: dict[str, list[Dialogue]], labels: LabelSet) -> dict[str, np.ndarray]:
    counts = Counter(utterance.label for utterance in _labelled(splits["train"]))
    shares = np.array([counts[label] for label in labels]) / counts.total()
    return {split: np.tile(shares, (len(_utterances(splits[split])), 1)) for split in ASKED}


def _answer_logistic(
    splits: dict[str, list[Dialogue]], labels: LabelSet, features: dict[str, Any], what: str
) -> dict[str, np.ndarray]:
    """Return probabilities, shape (utterances, labels), for each split: the fit that does best on dev."""
    from sklearn.linear_model import LogisticRegression

    known = {split: [place for place, u in enumerate(_utterances(splits[split])) if u.label] for split in splits}
    gold = {split: [labels.index(str(u.label)) for u in _labelled(dialogues)] for split, dialogues in splits.items()}
    candidates = [(strength, balance) for strength in STRENGTHS for balance in (None, "balanced")]
    best, found = -1.0, None
    for strength, balance in progress(candidates, len(candidates), what):
        model = LogisticRegression(C=strength, class_weight=balance, max_iter=2000)
        model.fit(features["train"][known["train"]], gold["train"])
        answered = model.predict(features["dev"][known["dev"]])
        score = float(weighted_f1(confusion_matrix(gold["dev"], answered, len(labels))))
        if score > best:
            best, found = score, model
    assert found is not None and list(found.classes_) == list(range(len(labels)))
    return {split: found.predict_proba(features[split]) for split in ASKED}


def _count_words(splits: dict[str, list[Dialogue]]) -> dict[str, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    vectorizer.fit(utterance.text for utterance in _utterances(splits["train"]))
    return {split: vectorizer.transform(u.text for u in _utterances(splits[split])) for split in splits}


def _encode(splits: dict[str, list[Dialogue]], name: str, run: Run) -> dict[str, np.ndarray]:
    encoder = SentenceEncoder(name)
    return {split: load_vectors(run, split, dialogues, encoder) for split, dialogues in splits.items()}


def _predict(dialogues: Sequence[Dialogue], probabilities: np.ndarray, labels: LabelSet) -> Iterator[Prediction]:
    rows = iter(probabilities.tolist())
    for dialogue in dialogues:
        for turn, utterance in enumerate(dialogue.utterances):
            row = next(rows)
            yield Prediction(
                dialogue=dialogue.id,
                utterance=utterance.id,
                turn=turn,
                speaker=utterance.speaker,
                text=utterance.text,
                gold=utterance.label,
                label=labels.names[int(np.argmax(row))],
                probabilities=dict(zip(labels, row, strict=True)),
            )


def _utterances(dialogues: Sequence[Dialogue]) -> list[Utterance]:
    return [utterance for dialogue in dialogues for utterance in dialogue.utterances]


def _labelled(dialogues: Sequence[Dialogue]) -> list[Utterance]:
    return [utterance for utterance in _utterances(dialogues) if utterance.label is not None]
