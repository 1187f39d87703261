"""Predict: every utterance of dev and test gets a label, a probability for every label, and the text it was asked."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...data.dialogue import Dialogue, by_session
from ...prompts.tasks import Task
from ...prompts.tokens import PieceTokenizer
from ...prompts.tree import PromptTree, gold_emotions, read_aloud
from ...retrieval.encoder import SentenceEncoder
from ...retrieval.profiles import read_facts, refuse_split
from .. import backbone
from ..adapter import load_adapter
from ..artefacts import load_dialogues, load_labels, load_trees, load_wording
from ..backbone import choose_dtype, load_model, load_tokenizer
from ..config import Config
from ..memory.conversations import remember_dialogues, show_window
from ..predictions import Prediction, write_predictions
from ..run import Run
from ..scoring import Answer, answer_trees
from .prompts import make_task, plant_split


def fingerprint(config: Config) -> str:
    """The base model decides too, whatever folder it comes from."""
    return backbone.fingerprint(config.model)


def run(config: Config, run: Run) -> str:
    facts = read_facts(run.path("profiles", "facts.jsonl"))
    for split in config.predict.splits:
        refuse_split(facts, split)
    labels, wording = load_labels(run), load_wording(run)
    tokens = PieceTokenizer(load_tokenizer(config.model), labels, wording, chat=config.prompts.chat)
    folder = Path(config.predict.adapter) if config.predict.adapter else run.path("train", "adapter")
    model = load_adapter(load_model(config.model), folder, config, labels, wording)
    task = make_task(config.prompts, wording, tokens, labels)
    told_gold = config.prompts.recent_emotions == "gold"
    writes: Counter[str] = Counter()
    count = 0
    for split in config.predict.splits:
        ask = partial(answer_split, model, task, config, run, split, writes)
        count += write_predictions(run.path("predict", f"{split}.jsonl"), ask(told_gold=told_gold))
        if config.predict.oracle and config.prompts.recent_emotions == "predicted":
            write_predictions(run.path("predict", f"{split}.oracle.jsonl"), ask(told_gold=True))
    remembered = f", {writes['written']:,} turns written, {writes['undone']:,} writes undone" if writes else ""
    return f"{count:,} answers{', all with gold recent emotions: an oracle' if told_gold else ''}{remembered}"


def answer_split(
    model: Any, task: Task, config: Config, run: Run, split: str, writes: Counter[str], *, told_gold: bool
) -> Iterator[Prediction]:
    """Yield a prediction for every utterance of a split, in order, told gold recent emotions or the model's own ones.

    `writes` counts turns "written" into a temporary memory and writes "undone".
    """
    dialogues = load_dialogues(run, split)
    texts = {(dialogue.id, u.id): u.text for dialogue in dialogues for u in dialogue.utterances}
    gold = gold_emotions(load_trees(run, split, task.wording)) if told_gold else None
    made_with = {
        "dtype": str(choose_dtype(config.model)).removeprefix("torch."),
        "row_tokens": config.predict.row_tokens,
    }
    if config.predict.memory:
        made_with["slots"] = config.memory.slots
        answers = _remember(model, task, config, run, split, dialogues, gold, writes)
    else:
        made_with["conversations"] = config.predict.conversations
        answers = answer_trees(
            model,
            task.tokens,
            task.wording,
            load_trees(run, split, task.wording),
            both_ways=config.model.both_ways,
            conversations=config.predict.conversations,
            row_tokens=config.predict.row_tokens,
            gold=gold,
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
            probabilities=dict(zip(task.tokens.answers, answer.probabilities, strict=True)),
            oracle=told_gold or config.is_oracle,
            prompt=read_aloud(answer.prompt),
            made_with=made_with,
        )


def _remember(
    model: Any,
    task: Task,
    config: Config,
    run: Run,
    split: str,
    dialogues: list[Dialogue],
    gold: Mapping[str, Mapping[int, str]] | None,
    writes: Counter[str],
) -> Iterator[Answer]:
    """Yield the answers of a split, in order, given with a temporary memory."""
    task, encoder = show_window(task, config.memory), SentenceEncoder(config.profiles.encoder)
    trees: dict[str, list[PromptTree]] = {}
    for tree in plant_split(config, run, split, task, encoder, Counter()):
        trees.setdefault(tree.dialogue, []).append(tree)
    if config.memory.scope == "session":
        dialogues = [dialogue for session in by_session(dialogues) for dialogue in session]
    answered = remember_dialogues(
        model,
        task,
        dialogues,
        lambda dialogue: trees[dialogue.id],
        config.memory,
        both_ways=config.model.both_ways,
        row_tokens=config.predict.row_tokens,
        gold=gold,
        total=sum(map(len, trees.values())),
    )
    found: dict[str, list[Answer]] = {dialogue: [] for dialogue in trees}
    for remembered in answered:
        writes["written"] += remembered.written
        writes["undone"] += remembered.undone
        found[remembered.answer.dialogue].append(remembered.answer)
    for answers in found.values():
        yield from answers
