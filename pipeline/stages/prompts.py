"""Prompts: dialogues and the store become prompt trees, and files in the common training formats.

A split is made anew where something changed that decides what becomes of it; otherwise it stays as it is.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...data.dialogue import SPLITS, Dialogue
from ...data.files import format_json_line, hash_file, hash_record, read_json, replace_atomically, write_json
from ...data.labels import LabelSet
from ...prompts.tasks import Knowledge, Task, build_trees
from ...prompts.tokens import PieceTokenizer
from ...prompts.tree import Branch, PromptTree, gold_emotions, read_aloud, to_record, unroll
from ...prompts.wording import Piece, Wording, read_wording
from ...retrieval.encoder import SentenceEncoder
from .. import backbone
from ..artefacts import (
    count_dialogues,
    load_corpus_name,
    load_labels,
    load_trees,
    load_wording,
    stream_dialogues,
)
from ..backbone import load_tokenizer
from ..config import Config
from ..config import Prompts as PromptsConfig
from ..console import progress, say
from ..exports import CARD, list_exports, open_exports, unroll_rows, write_card
from ..knowledge import Inform, choose_knowledge, tells_facts
from ..parallel import map_in_order
from ..parts import find_part, finish_part, keep_parts
from ..run import Run
from .profiles import VECTORS, stream_vectors

Notes = dict[str, Any]
TOGETHER = 16  # dialogues that a process words at a time


def run(config: Config, run: Run) -> str:
    backbone.check_positions(config.model, config.prompts.max_tokens)
    folder, wording = run.path("prompts"), read_wording(config.prompts.template)
    keys = {split: _hash_sources(config, run, split) for split in SPLITS}
    found = {split: find_part(folder, split, key) for split, key in keys.items()}
    kept = [split for split in SPLITS if found[split]]
    keep_parts(folder, kept)
    wording.write(folder / "wording")
    encoder = SentenceEncoder(config.profiles.encoder)
    notes: dict[str, Notes] = {}
    for split in SPLITS:
        notes[split] = found[split] or _make_split(config, run, split, wording, encoder)
        if split not in kept:
            finish_part(folder, split, keys[split], [f"{split}.jsonl", *list_exports(split)], notes[split])
    losses = sum((Counter(noted["losses"]) for noted in notes.values()), Counter())
    _write_summary(folder / "summary.json", notes, losses)
    write_card(folder / CARD, config, load_corpus_name(run), load_labels(run), wording, notes)
    for loss, count in losses.items():
        say(f"  note: {count:,} {loss}, to keep the token budgets")
    if kept:
        say(f"  those of {', '.join(kept)} are up to date")
    count, tokens = (sum(noted[what] for noted in notes.values()) for what in ("prompts", "tokens"))
    return f"{count:,} prompts of {tokens / count:.0f} tokens on average"


def preview(config: Config, run: Run, n: int) -> str:
    """Return `n` training prompts, evenly spread, as a person reads them; the supervised answer is highlighted."""
    wording = load_wording(run)
    task = build_task(config, run)
    on, off = ("\033[7m", "\033[0m") if sys.stdout.isatty() else ("«", "»")
    total = read_json(run.path("prompts", "summary.json"))["prompts"]["train"]
    chosen = {i * total // n for i in range(n)}
    shown = []
    for place, (branch, prompt) in enumerate(_unroll_train(run, wording)):
        if place in chosen:
            answer = task.tokens.answers[str(branch.label)]
            size = task.tokens.count(prompt) + len(answer)
            head = f"--- {branch.utterance} ({size} tokens, {len(answer)} supervised)"
            shown.append(f"{head}\n{read_aloud(prompt)}{on}{task.tokens.tokenizer.decode(answer)}{off}\n")
    return "\n".join(shown)


def _unroll_train(run: Run, wording: Wording) -> Iterator[tuple[Branch, tuple[Piece, ...]]]:
    for _, group in groupby(load_trees(run, "train", wording), key=lambda tree: tree.dialogue):
        trees = list(group)
        gold = gold_emotions(trees)
        for tree in trees:
            yield from ((branch, unroll(tree, branch, gold[tree.dialogue], wording)) for branch in tree.branches)


def fingerprint(config: Config) -> str:
    """The wording and the model with its tokenizer decide too, whatever folder they come from."""
    return read_wording(config.prompts.template).hash + backbone.fingerprint(config.model)


def plant_split(
    config: Config, run: Run, split: str, task: Task, encoder: SentenceEncoder, losses: Counter[str]
) -> Iterator[PromptTree]:
    """Yield the trees of a split in order. In training nothing is told that draws on the dialogue itself.

    `losses` counts what was left out to keep the token budgets.
    """
    inform = choose_knowledge(config, run, encoder, split)
    for dialogue, vectors in _read_split(config, run, split, encoder):
        yield from _plant_dialogue(dialogue, inform(dialogue, vectors), split, task, losses)


def build_task(config: Config, run: Run) -> Task:
    labels, wording = load_labels(run), read_wording(config.prompts.template)
    tokens = PieceTokenizer(load_tokenizer(config.model), labels, wording, chat=config.prompts.chat)
    return make_task(config.prompts, wording, tokens, labels)


def make_task(settings: PromptsConfig, wording: Wording, tokens: PieceTokenizer, labels: LabelSet) -> Task:
    return Task(
        wording=wording,
        tokens=tokens,
        labels=labels,
        history=settings.history,
        window=settings.window,
        max_tokens=settings.max_tokens,
        biography_tokens=settings.biography_tokens,
        fact_tokens=settings.fact_tokens if settings.facts else 0,
        recent_count=0 if settings.recent_emotions == "none" else settings.recent_count,
    )


def _hash_sources(config: Config, run: Run, split: str) -> str:
    """Hash all that decides what becomes of a split."""
    files = [run.path("ingest", "labels.json"), run.path("ingest", f"dialogues.{split}.jsonl")]
    record: dict[str, Any] = {
        "erckit": __version__,
        "split": split,
        "prompts": config.prompts.model_dump(mode="json"),
        # Nothing but the tokenizer of the model matters here.
        "model": config.model.model_dump(mode="json", include={"name", "revision", "trust_remote_code"}),
        "fingerprint": fingerprint(config),
    }
    if tells_facts(config.prompts):
        record["profiles"] = config.profiles.model_dump(mode="json")
        # Facts hold the ids of their speakers: of the registry nothing else matters.
        files += [run.path("profiles", name) for name in ("store.json", *([VECTORS] if split == "train" else []))]
    return hash_record(record | {"files": {path.name: hash_file(path) for path in files}})


def _make_split(config: Config, run: Run, split: str, wording: Wording, encoder: SentenceEncoder) -> Notes:
    """Write the trees of a split and its exports. Returns what the summary and the card say of it."""
    begin = partial(_begin_wording, config, run, split, choose_knowledge(config, run, encoder, split))
    read = _read_split(config, run, split, encoder)
    together = iter(lambda: list(islice(read, TOGETHER)), [])
    notes: Notes = {"prompts": 0, "tokens": 0, "longest": 0, "rows": 0}
    losses: Counter[str] = Counter()
    with (
        replace_atomically(run.path("prompts", f"{split}.jsonl")) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        open_exports(run.path("prompts"), split, wording) as export,
    ):
        for worded in map_in_order(begin, together, config.processes):
            file.writelines(worded.trees)
            for prompt, label in worded.rows:
                export(prompt, label)
            notes["prompts"] += len(worded.sizes)
            notes["tokens"] += sum(worded.sizes)
            notes["longest"] = max([notes["longest"], *worded.sizes])
            notes["rows"] += len(worded.rows)
            losses.update(worded.losses)
    return notes | {"losses": losses}


def _read_split(
    config: Config, run: Run, split: str, encoder: SentenceEncoder
) -> Iterator[tuple[Dialogue, np.ndarray]]:
    """Yield the dialogues of a split, with the vectors of their utterances where facts are told."""
    if tells_facts(config.prompts):
        read = stream_vectors(run, split, encoder)
    else:
        read = ((dialogue, np.empty(0)) for dialogue in stream_dialogues(run, split))
    return progress(read, count_dialogues(run, split), f"{split} dialogues worded")


def _plant_dialogue(
    dialogue: Dialogue, knowledge: Knowledge, split: str, task: Task, losses: Counter[str]
) -> Iterator[PromptTree]:
    turns = range(len(dialogue.utterances))
    asked = [turn for turn in turns if split != "train" or dialogue.utterances[turn].label is not None]
    return build_trees(dialogue, knowledge, task, asked=asked, losses=losses)


@dataclass(frozen=True, slots=True)
class Worded:
    """What became of some dialogues.

    Trees as JSON lines; labelled prompts as text, each with its label; the tokens of every prompt with its answer; and
    what was left out to keep the token budgets.
    """

    trees: list[str] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)


def _begin_wording(
    config: Config, run: Run, split: str, inform: Inform
) -> Callable[[Sequence[tuple[Dialogue, np.ndarray]]], Worded]:
    return partial(_word_dialogues, build_task(config, run), split, inform)


def _word_dialogues(task: Task, split: str, inform: Inform, read: Sequence[tuple[Dialogue, np.ndarray]]) -> Worded:
    worded = Worded()
    for dialogue, vectors in read:
        trees = list(_plant_dialogue(dialogue, inform(dialogue, vectors), split, task, worded.losses))
        worded.trees.extend(format_json_line(to_record(tree, task.wording)) for tree in trees)
        worded.rows.extend(unroll_rows(trees, task.wording, told_gold=split == "train"))
        worded.sizes.extend(_measure(tree, branch, task) for tree in trees for branch in tree.branches)
    return worded


def _measure(tree: PromptTree, branch: Branch, task: Task) -> int:
    """Return the tokens of an unrolled prompt with its answer, and the longest emotions told; all of them fit."""
    told = dict.fromkeys(branch.recent, task.longest_label)
    answer = task.tokens.answers[branch.label or task.longest_label]
    size = task.tokens.count(unroll(tree, branch, told, task.wording)) + len(answer)
    assert size <= task.max_tokens, f"{branch.utterance}: {size} tokens"
    return size


def _write_summary(path: Path, notes: dict[str, Notes], losses: Counter[str]) -> None:
    sizes = {
        "prompts": {split: noted["prompts"] for split, noted in notes.items()},
        "mean_tokens": {split: noted["tokens"] / noted["prompts"] for split, noted in notes.items()},
        "longest_tokens": {split: noted["longest"] for split, noted in notes.items()},
    }
    write_json(path, sizes | {"losses": losses})
