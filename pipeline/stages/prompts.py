"""Prompts: dialogues and the store become prompt trees, and files in the common training formats."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from ...data.dialogue import SPLITS, Dialogue
from ...data.files import write_json, write_json_lines
from ...data.labels import LabelSet
from ...data.speakers import SpeakerRegistry
from ...prompts.tasks import Knowledge, Task, build_trees
from ...prompts.tokens import PieceTokenizer
from ...prompts.tree import PromptTree, gold_emotions, read_aloud, to_record, unroll
from ...prompts.wording import Piece, Wording, read_wording
from ...retrieval.biographer import StatisticalBiographer
from ...retrieval.encoder import SentenceEncoder
from ...retrieval.store import ProfileStore
from .. import backbone
from ..artefacts import load_dialogues, load_labels, load_speakers, load_trees, load_wording
from ..backbone import load_tokenizer
from ..config import Config
from ..config import Prompts as PromptsConfig
from ..console import progress, say
from ..run import Run
from .profiles import build_biographer, load_vectors

Inform = Callable[[Dialogue, np.ndarray], Knowledge]


def run(config: Config, run: Run) -> str:
    backbone.check_positions(config.model, config.prompts.max_tokens)
    task = build_task(config, run)
    task.wording.write(run.path("prompts", "wording"))
    sizes: dict[str, list[int]] = {}
    losses: Counter[str] = Counter()
    encoder = SentenceEncoder(config.profiles.encoder)
    for split in SPLITS:
        sizes[split] = []
        trees = plant_split(config, run, split, task, encoder, losses)
        measured = _measure(trees, task, sizes[split])
        write_json_lines(run.path("prompts", f"{split}.jsonl"), (to_record(tree, task.wording) for tree in measured))
        _export(run, split, task)
    write_json(run.path("prompts", "summary.json"), _summarise(sizes, losses))
    for loss, count in losses.items():
        if count:
            say(f"  note: {count:,} {loss}, to keep the token budgets")
    mean = sum(map(sum, sizes.values())) / sum(map(len, sizes.values()))
    return f"{sum(map(len, sizes.values())):,} prompts of {mean:.0f} tokens on average"


def preview(config: Config, run: Run, n: int) -> str:
    """Return `n` training prompts, evenly spread, as a person reads them; the supervised answer is highlighted."""
    wording = load_wording(run)
    task = build_task(config, run)
    on, off = ("\033[7m", "\033[0m") if sys.stdout.isatty() else ("«", "»")
    asked = [(tree, branch) for tree in load_trees(run, "train", wording) for branch in tree.branches]
    chosen = [asked[i * len(asked) // n] for i in range(min(n, len(asked)))]
    gold = gold_emotions(tree for tree, _ in asked)
    shown = []
    for tree, branch in chosen:
        prompt = unroll(tree, branch, gold[tree.dialogue], wording)
        answer = task.tokens.answers[str(branch.label)]
        head = f"--- {branch.utterance} ({task.tokens.count(prompt) + len(answer)} tokens, {len(answer)} supervised)"
        shown.append(f"{head}\n{read_aloud(prompt)}{on}{task.tokens.tokenizer.decode(answer)}{off}\n")
    return "\n".join(shown)


def fingerprint(config: Config) -> str:
    """The wording and the model with its tokenizer decide too, whatever folder they come from."""
    return read_wording(config.prompts.template).hash + backbone.fingerprint(config.model)


def plant_split(
    config: Config, run: Run, split: str, task: Task, encoder: SentenceEncoder, losses: Counter[str]
) -> Iterator[PromptTree]:
    """Yield the trees of a split in order. In training nothing is told that draws on the dialogue itself.

    `losses` counts what was left out to keep the token budgets.
    """
    dialogues = load_dialogues(run, split)
    vectors = load_vectors(run, split, dialogues, encoder)
    inform = _choose_knowledge(config, run, encoder, split, dialogues, vectors)
    row = 0
    for dialogue in progress(dialogues, len(dialogues), f"{split} dialogues worded"):
        turns = range(len(dialogue.utterances))
        knowledge = inform(dialogue, vectors[row : row + len(turns)])
        row += len(turns)
        asked = [turn for turn in turns if split != "train" or dialogue.utterances[turn].label is not None]
        yield from build_trees(dialogue, knowledge, task, asked=asked, losses=losses)


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


def leave_out(biographer: StatisticalBiographer, count: int, dialogue: Dialogue, vectors: np.ndarray) -> Knowledge:
    """What may be told in training prompts of a dialogue: nothing that draws on the dialogue itself."""

    def nearest(turn: int) -> list[str]:
        names = dialogue.utterances[turn].speakers
        found = [pair for name in names for pair in biographer.nearest(name, vectors[turn], count, dialogue.id)]
        return [fact.text for fact, _ in sorted(found, key=lambda pair: (-pair[1], pair[0].id))[:count]]

    return Knowledge(general=partial(biographer.general, without=dialogue.id), nearest=nearest)


def look_up(
    store: ProfileStore,
    speakers: SpeakerRegistry,
    count: int,
    dialogue: Dialogue,
    vector_of: Callable[[int], np.ndarray],
) -> Knowledge:
    """What may be told in the prompts of a dialogue that no fact draws on; `vector_of` embeds the text of a turn."""

    def find(name: str) -> int | None:
        return speakers[name].id if name in speakers else None

    def general(name: str) -> list[str] | None:
        id = find(name)
        facts = [] if id is None else store.facts_of(id)
        return [fact.text for fact in facts if fact.general] if facts else None

    def nearest(turn: int) -> list[str]:
        ids = [id for name in dialogue.utterances[turn].speakers if (id := find(name)) is not None]
        found = [pair for id in ids for pair in store.search(vector_of(turn), count, speaker=id)]
        return [fact.text for fact, _ in sorted(found, key=lambda pair: (-pair[1], pair[0].id))[:count]]

    return Knowledge(general=general, nearest=nearest)


def _choose_knowledge(
    config: Config, run: Run, encoder: SentenceEncoder, split: str, dialogues: list[Dialogue], vectors: np.ndarray
) -> Inform:
    count = config.prompts.facts
    if split == "train":
        return partial(leave_out, build_biographer(config, run, encoder, dialogues, vectors), count)
    store = ProfileStore.load(run.path("profiles"), encoder.name, encoder.fingerprint, encoder.dimension)
    store.refuse_split(split)
    speakers = load_speakers(run)
    return lambda dialogue, vectors: look_up(store, speakers, count, dialogue, vectors.__getitem__)


def _measure(trees: Iterator[PromptTree], task: Task, sizes: list[int]) -> Iterator[PromptTree]:
    """Pass the trees on, noting the tokens of every unrolled prompt of theirs with its answer; all of them fit."""
    for tree in trees:
        for branch in tree.branches:
            told = dict.fromkeys(branch.recent, task.longest_label)
            answer = task.tokens.answers[branch.label or task.longest_label]
            size = task.tokens.count(unroll(tree, branch, told, task.wording)) + len(answer)
            assert size <= task.max_tokens, f"{branch.utterance}: {size} tokens"
            sizes.append(size)
        yield tree


def _export(run: Run, split: str, task: Task) -> None:
    """Write what other trainers read: prompt and completion, and messages.

    Recent emotions are gold in train. For dev and test they are not known before prediction, and are left out.
    """

    def write(name: str, convert: Callable[[str, str], dict[str, object]]) -> None:
        trees = load_trees(run, split, task.wording)
        gold = gold_emotions(load_trees(run, split, task.wording)) if split == "train" else {}
        values = (
            convert(_without_control(unroll(tree, branch, gold.get(tree.dialogue, {}), task.wording)), branch.label)
            for tree in trees
            for branch in tree.branches
            if branch.label is not None
        )
        write_json_lines(run.path("prompts", "export", f"{split}.{name}.jsonl"), values)

    answer = partial(task.wording.text, "answer")
    write("completions", lambda prompt, label: {"prompt": prompt, "completion": answer(label=label)})
    write(
        "messages",
        lambda prompt, label: {
            "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": label}]
        },
    )


def _without_control(prompt: tuple[Piece, ...]) -> str:
    """Other trainers add a model's control tokens themselves."""
    return "".join(piece.text for piece in prompt if not piece.control).lstrip("\n")


def _summarise(sizes: dict[str, list[int]], losses: Counter[str]) -> dict[str, object]:
    return {
        "prompts": {split: len(counts) for split, counts in sizes.items()},
        "mean_tokens": {split: sum(counts) / len(counts) for split, counts in sizes.items()},
        "longest_tokens": {split: max(counts) for split, counts in sizes.items()},
        "losses": dict(losses),
    }
