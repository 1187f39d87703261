"""Predict: every utterance of dev and test gets a label, a probability for every label, and the text it was asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...prompts.tokens import PieceTokenizer
from ...prompts.tree import gold_emotions, read_aloud
from ...prompts.wording import Wording
from ...retrieval.profiles import read_facts, refuse_split
from .. import backbone
from ..adapter import load_adapter
from ..artefacts import load_dialogues, load_labels, load_trees, load_wording
from ..backbone import choose_dtype, load_model, load_tokenizer
from ..config import Config
from ..predictions import Prediction, write_predictions
from ..run import Run
from ..scoring import answer_trees

ASKED = ("dev", "test")


def fingerprint(config: Config) -> str:
    """The base model decides too, whatever folder it comes from."""
    return backbone.fingerprint(config.model)


def run(config: Config, run: Run) -> str:
    facts = read_facts(run.path("profiles", "facts.jsonl"))
    for split in ASKED:
        refuse_split(facts, split)
    labels, wording = load_labels(run), load_wording(run)
    tokens = PieceTokenizer(load_tokenizer(config.model), labels, wording, chat=config.prompts.chat)
    folder = Path(config.predict.adapter) if config.predict.adapter else run.path("train", "adapter")
    model = load_adapter(load_model(config.model), folder, config, labels, wording)
    oracle = config.prompts.recent_emotions == "gold"
    count = 0
    for split in ASKED:
        answers = answer_split(model, tokens, wording, config, run, split, oracle=oracle)
        count += write_predictions(run.path("predict", f"{split}.jsonl"), answers)
        if config.predict.oracle and config.prompts.recent_emotions == "predicted":
            answers = answer_split(model, tokens, wording, config, run, split, oracle=True)
            write_predictions(run.path("predict", f"{split}.oracle.jsonl"), answers)
    return f"{count:,} answers{', all with gold recent emotions: an oracle' if oracle else ''}"


def answer_split(
    model: Any, tokens: PieceTokenizer, wording: Wording, config: Config, run: Run, split: str, *, oracle: bool
) -> Iterator[Prediction]:
    """Yield a prediction for every utterance of a split, in order; an oracle is told gold recent emotions."""
    texts = {(dialogue.id, u.id): u.text for dialogue in load_dialogues(run, split) for u in dialogue.utterances}
    made_with = {
        "dtype": str(choose_dtype(config.model)).removeprefix("torch."),
        "conversations": config.predict.conversations,
        "row_tokens": config.predict.row_tokens,
    }
    answers = answer_trees(
        model,
        tokens,
        wording,
        load_trees(run, split, wording),
        both_ways=config.model.both_ways,
        conversations=config.predict.conversations,
        row_tokens=config.predict.row_tokens,
        gold=gold_emotions(load_trees(run, split, wording)) if oracle else None,
        total=len(texts),
    )
    for answer in answers:
        branch = answer.branch
        yield Prediction(
            dialogue=answer.dialogue,
            utterance=branch.utterance,
            turn=branch.turn,
            speaker=branch.speaker,
            text=texts[answer.dialogue, branch.utterance],
            gold=branch.label,
            label=answer.label,
            probabilities=dict(zip(tokens.answers, answer.probabilities, strict=True)),
            oracle=oracle,
            prompt=read_aloud(answer.prompt),
            made_with=made_with,
        )
