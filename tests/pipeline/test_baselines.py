"""Baselines: plain scikit-learn on the same utterances, with every choice made on dev."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from erckit.data.dialogue import SPLITS
from erckit.data.erckit_jsonl import read_dialogues, write_dialogues
from erckit.data.labels import EMORYNLP
from erckit.pipeline.predictions import read_predictions
from erckit.pipeline.stages import baselines
from erckit.retrieval.encoder import SentenceEncoder
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

SYSTEMS = ("majority", "tfidf", "encoder")


def read_splits(run):
    return {split: read_dialogues(run.path("ingest", f"dialogues.{split}.jsonl"), EMORYNLP) for split in SPLITS}


def read_answers(run):
    return {
        (split, system): read_predictions(run.path("baselines", f"{split}.{system}.jsonl"), EMORYNLP)
        for split in ("dev", "test")
        for system in SYSTEMS
    }


@pytest.fixture(scope="module")
def splits(prepared):
    return read_splits(prepared)


@pytest.fixture(scope="module")
def answers(prepared):
    return read_answers(prepared)


def texts_of(dialogues):
    return [utterance.text for dialogue in dialogues for utterance in dialogue.utterances]


def labels_of(dialogues):
    return [utterance.label for dialogue in dialogues for utterance in dialogue.utterances]


def test_every_utterance_is_answered_in_order_with_the_likeliest_label(splits, answers):
    for (split, _), found in answers.items():
        assert [(p.dialogue, p.utterance, p.turn, p.speaker, p.text, p.gold) for p in found] == [
            (dialogue.id, utterance.id, turn, utterance.speaker, utterance.text, utterance.label)
            for dialogue in splits[split]
            for turn, utterance in enumerate(dialogue.utterances)
        ]
        for prediction in found:
            assert sum(prediction.probabilities.values()) == pytest.approx(1)
            assert prediction.probabilities[prediction.label] == max(prediction.probabilities.values())
            assert not prediction.oracle


def test_the_majority_is_that_of_the_training_labels(splits, answers):
    counts = Counter(labels_of(splits["train"]))
    shares = {label: counts[label] / counts.total() for label in EMORYNLP}
    for split in ("dev", "test"):
        found = answers[split, "majority"]
        assert {p.label for p in found} == {counts.most_common(1)[0][0]}
        assert all(p.probabilities == pytest.approx(shares) for p in found)


def fit_by_force(features, splits):
    """The probabilities for dev and test of the logistic regression with the best W-F1 on dev; the first, if equal."""
    fits = []
    for strength in (0.1, 1.0, 10.0):
        for balance in (None, "balanced"):
            model = LogisticRegression(C=strength, class_weight=balance, max_iter=2000)
            model.fit(features["train"], labels_of(splits["train"]))
            score = f1_score(labels_of(splits["dev"]), model.predict(features["dev"]), average="weighted")
            order = [list(model.classes_).index(label) for label in EMORYNLP]
            fits.append((score, {split: model.predict_proba(features[split])[:, order] for split in ("dev", "test")}))
    assert len({score for score, _ in fits}) > 1  # there is something to choose
    return max(fits, key=lambda fit: fit[0])[1]


@pytest.mark.parametrize("system", ["tfidf", "encoder"])
def test_the_logistic_regression_is_the_one_that_does_best_on_dev(splits, answers, system):
    if system == "tfidf":
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit(texts_of(splits["train"]))
        features = {split: vectorizer.transform(texts_of(dialogues)) for split, dialogues in splits.items()}
    else:
        encoder = SentenceEncoder()
        features = {split: encoder.encode(texts_of(dialogues)) for split, dialogues in splits.items()}
    expected = fit_by_force(features, splits)
    for split in ("dev", "test"):
        found = [[p.probabilities[label] for label in EMORYNLP] for p in answers[split, system]]
        np.testing.assert_allclose(found, expected[split], atol=2e-3)


def test_test_decides_nothing(begin, answers):
    """With other labels in test, some of them missing, every answer is the same."""
    config, run = begin()
    talks = read_splits(run)["test"]
    labels = iter([None, *np.random.default_rng(0).choice(EMORYNLP.names, size=len(texts_of(talks)) - 1).tolist()])
    changed = [replace(d, utterances=tuple(replace(u, label=next(labels)) for u in d.utterances)) for d in talks]
    write_dialogues(run.path("ingest", "dialogues.test.jsonl"), changed)
    baselines.run(config, run)

    for key, found in read_answers(run).items():
        golds = labels_of(changed) if key[0] == "test" else [p.gold for p in answers[key]]
        assert found == [replace(p, gold=gold) for p, gold in zip(answers[key], golds, strict=True)]


def test_other_weights_of_the_encoder_make_other_baselines(monkeypatch, begin):
    config, _ = begin()
    before = baselines.fingerprint(config)
    monkeypatch.setattr(SentenceEncoder, "fingerprint", "of other weights")
    assert before != baselines.fingerprint(config) == "of other weights"
