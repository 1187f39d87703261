"""Conversations with a temporary memory: many advance together, each turn recognised and then written."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ...data.dialogue import Dialogue
from ...data.errors import DataError
from ...prompts.packing import TreeTokens
from ...prompts.tasks import Task
from ...prompts.tokens import PieceTokenizer
from ...prompts.tree import PromptTree, unroll
from ...prompts.wording import Wording
from ..config import Memory as MemoryConfig
from ..console import progress
from ..scoring import Answer, fill_rows, in_order
from .factors import State
from .writing import Outcome, Turn, Writer, lay_out_turn

# Tokens of a row on a CPU: the logits of the words in longer ones outgrow its caches, and 32 slots are slower than 8.
CPU_ROW_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Remembered:
    """An answer, and what was written after it: the losses of what was said and felt, in nats."""

    answer: Answer
    semantics_loss: float
    emotion_loss: float
    written: bool
    undone: bool


def answer_with_memory(
    model: Any,
    tokens: PieceTokenizer,
    wording: Wording,
    groups: Iterable[Iterable[PromptTree]],
    settings: MemoryConfig,
    *,
    both_ways: bool,
    row_tokens: int,
    gold: Mapping[str, Mapping[int, str]] | None = None,
    total: int | None = None,
) -> Iterator[Remembered]:
    """Yield the answer to every turn, group by group, in order; the model must be in evaluation mode.

    A group is the turns that share a memory, of one dialogue or of several: trees of one branch each. As many groups
    as there are slots advance together, and one that ends hands its slot on, with an empty memory. Recent emotions are
    the model's own earlier answers in the same dialogue, or those of `gold` by dialogue and turn. With `total`, the
    number of turns, progress is shown.
    A forward pass has at most `row_tokens` tokens, on a CPU 1,024, unless a single turn needs more.
    """
    if settings.scope == "speaker":
        settings = settings.model_copy(update={"slots": 1})  # there is one group only
    writer = Writer(model, tokens, settings, settings.slots)
    if writer.factors.device.type == "cpu":
        row_tokens = min(row_tokens, CPU_ROW_TOKENS)
    talks = (_Talk(iter(group), Thread(tokens, wording, both_ways, gold)) for group in groups)
    heard = _converse(writer, talks, row_tokens)
    yield from in_order(progress(heard, total, "turns answered") if total else heard)


def remember_dialogues(
    model: Any,
    task: Task,
    dialogues: Iterable[Dialogue],
    plant: Callable[[Dialogue], Iterable[PromptTree]],
    settings: MemoryConfig,
    **options: Any,
) -> Iterator[Remembered]:
    """Answer dialogues, those that share a memory one after the other; `plant` gives the trees of one.

    A session's dialogues come one after the other (`data.dialogue.by_session`). `options` are `answer_with_memory`'s.
    """
    groups = ((tree for one in group for tree in plant(one)) for group in _share_memory(dialogues, settings))
    return answer_with_memory(model, task.tokens, task.wording, groups, settings, **options)


def show_window(task: Task, settings: MemoryConfig) -> Task:
    """Return how prompts are made beside a memory: each shows its window of utterances alone."""
    return replace(task, history="window", window=settings.window)


def _share_memory(dialogues: Iterable[Dialogue], settings: MemoryConfig) -> Iterator[Iterable[Dialogue]]:
    """Yield the dialogues that share a memory: each by itself, those of a session, or all where speakers have one."""
    if settings.scope == "speaker":
        yield dialogues
    else:
        shared = settings.scope == "session"
        yield from (list(group) for _, group in groupby(dialogues, lambda one: (shared and one.session) or (one.id,)))


class Thread:
    """The turns that share a memory, while they are answered; with the scope "speaker", a memory for each of them."""

    def __init__(
        self,
        tokens: PieceTokenizer,
        wording: Wording,
        both_ways: bool,
        gold: Mapping[str, Mapping[int, str]] | None = None,
    ) -> None:
        self._tokens, self._wording, self._both_ways, self._gold = tokens, wording, both_ways, gold
        self._labels = list(tokens.answers)
        self._dialogue, self._felt = "", dict[int, str]()
        self.memories: dict[str, State] = {}  # by speaker, with a memory for each

    def resume(self, dialogue: str, felt: Mapping[int, str]) -> None:
        """Go on in a dialogue whose earlier turns were answered elsewhere."""
        self._dialogue, self._felt = dialogue, dict(felt)

    def ask(self, tree: PromptTree, slot: int, writer: Writer) -> Turn:
        """Return the turn that a tree of one branch asks; a memory of its speaker's own is put into the slot."""
        (branch,) = tree.branches
        if tree.dialogue != self._dialogue:
            self._dialogue, self._felt = tree.dialogue, {}
        if writer.settings.scope == "speaker":
            writer.factors.put([slot], self.memories.get(branch.speaker))
        packed = TreeTokens(tree, self._tokens, self._wording, both_ways=self._both_ways)
        written = None
        if writer.settings.oracle and branch.label is not None:
            if branch.label not in self._labels:
                raise DataError(
                    f"{branch.utterance}: gold is {branch.label!r}, expected one of {', '.join(self._labels)}."
                )
            written = self._labels.index(branch.label)
        return lay_out_turn(packed, self._tokens, packed.branch(0, self._told()), slot, written)

    def hear(self, tree: PromptTree, outcome: Outcome, slot: int, writer: Writer) -> Remembered:
        """Take in what came of the turn."""
        (branch,) = tree.branches
        prompt = unroll(tree, branch, self._told(), self._wording)
        label = self._felt[branch.turn] = self._labels[int(outcome.log_p.argmax())]
        if writer.settings.scope == "speaker":
            self.memories[branch.speaker] = writer.factors.take([slot])
        answer = Answer(tree.dialogue, branch, label, tuple(outcome.log_p.exp().tolist()), prompt)
        return Remembered(answer, outcome.semantics_loss, outcome.emotion_loss, outcome.written, outcome.undone)

    def _told(self) -> Mapping[int, str]:
        return self._felt if self._gold is None else self._gold.get(self._dialogue, {})


class _Talk:
    """A thread with its turns still to come, and its number among the groups that have any."""

    def __init__(self, trees: Iterator[PromptTree], thread: Thread) -> None:
        self.trees, self.thread, self.place = trees, thread, 0
        self.next = next(trees, None)

    def ask(self, slot: int, writer: Writer) -> Turn:
        assert self.next is not None
        return self.thread.ask(self.next, slot, writer)

    def hear(self, outcome: Outcome, slot: int, writer: Writer) -> Remembered:
        """Take in what came of the turn, and go on to the next one."""
        assert self.next is not None
        remembered = self.thread.hear(self.next, outcome, slot, writer)
        self.next = next(self.trees, None)
        return remembered


def _converse(writer: Writer, talks: Iterator[_Talk], row_tokens: int) -> Iterator[tuple[int, Remembered, bool]]:
    """Yield every answer with the number of its group, and whether it was the group's last."""
    waiting = (talk for talk in talks if talk.next is not None)
    free, active, started = list(range(writer.settings.slots)), dict[int, _Talk](), 0
    while True:
        while free and (talk := next(waiting, None)) is not None:
            slot, talk.place, started = free.pop(0), started, started + 1
            writer.forget(slot)
            active[slot] = talk
        if not active:
            return
        asking = [active[slot].ask(slot, writer) for slot in sorted(active)]
        for turns in fill_rows(asking, lambda turn: turn.part, row_tokens):
            for turn, outcome in zip(turns, writer.turn(turns), strict=True):
                talk = active[turn.slot]
                remembered = talk.hear(outcome, turn.slot, writer)
                yield talk.place, remembered, talk.next is None
                if talk.next is None:
                    del active[turn.slot]
                    free.append(turn.slot)
        free.sort()
