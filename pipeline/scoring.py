"""Closed-set scoring: every label by the log-likelihood of its answer, a conversation computed once."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from ..prompts.packing import Leaf, Part, TreeTokens
from ..prompts.tokens import Choices, PieceTokenizer
from ..prompts.tree import Branch, PromptTree, unroll
from ..prompts.wording import Piece, Wording
from .console import progress
from .measure import release_memory

if TYPE_CHECKING:
    import torch

    from .attention import Layout, TrunkCache

T = TypeVar("T")

# Forward passes after which freed memory goes back to the system: rows of ever other lengths leave gaps.
PASSES_TO_RELEASE = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answers for one utterance: a probability for each label, in order, and the prompt it was asked."""

    dialogue: str
    branch: Branch
    label: str
    probabilities: tuple[float, ...]
    prompt: tuple[Piece, ...]


class Decisions:
    """Where in a row answers are decided, and what their log-likelihoods are, given logits there.

    `answers` holds those asked for each branch, over all parts in order, none for a branch that decides nothing; the
    leaves that they need hang from it (`find_leaves`). At every token the model chooses among those that continue an
    answer (`prompts.tokens.find_choices`): the log-likelihood under constrained decoding, which sums to 1 over the
    label set and favours no label for its number of tokens. Where labels are one token, it is the cross-entropy of
    their logits.
    """

    def __init__(self, layout: "Layout", answers: Sequence[Sequence[Leaf]], choices: Choices) -> None:
        self.places: list[int] = []
        self.count = 0
        self._allowed: list[tuple[int, ...]] = []
        self._terms: list[tuple[int, int, int]] = []  # the answer, the decision that it passes, and its choice there
        wanted = iter(answers)
        for part, start in zip(layout.parts, layout.starts, strict=True):
            for decided in part.asked:
                asked = next(wanted)
                if not asked:
                    continue
                # Where all labels begin alike, nothing is decided at first.
                forks = [leaf for leaf in decided if leaf in choices]
                rows = {leaf: len(self.places) + row for row, leaf in enumerate(forks)}
                self.places += [start + decided[leaf] for leaf in forks]
                self._allowed += [choices[leaf] for leaf in forks]
                for answer in asked:
                    passed = [answer[:depth] for depth in range(len(answer)) if answer[:depth] in choices]
                    self._terms += [(self.count, rows[p], choices[p].index(answer[len(p)])) for p in passed]
                    self.count += 1

    def score(self, logits: "torch.Tensor") -> "torch.Tensor":
        """Return log p(answer | what its branch sees, it is an answer), float32, shape (answers,), in order.

        `logits` are those at `places`, shape (places, vocabulary).
        """
        import torch

        widest = max(map(len, self._allowed))
        tokens = [[*choice, *[-1] * (widest - len(choice))] for choice in self._allowed]
        ids = torch.tensor(tokens, device=logits.device)
        chosen = logits.float().gather(1, ids.clamp(min=0)).masked_fill(ids < 0, float("-inf"))
        to, rows, columns = torch.tensor(self._terms, device=logits.device).unbind(1)
        zeros = torch.zeros(self.count, device=logits.device)
        return zeros.index_add(0, to, chosen.log_softmax(dim=1)[rows, columns])


def answer_log_likelihoods(
    model: Any,
    parts: Sequence[Part],
    answers: Sequence[Sequence[Leaf]],
    choices: Choices,
    caches: "Sequence[TrunkCache | None]" = (),
) -> "torch.Tensor":
    """Return the log-likelihood of every answer (`Decisions`), shape (answers,).

    Logits are computed where something is decided and nowhere else.
    """
    from .attention import Layout, packed_logits

    layout = Layout(parts, next(model.parameters()).device, caches)
    decisions = Decisions(layout, answers, choices)
    return decisions.score(packed_logits(model, layout, decisions.places))


def find_leaves(answers: Iterable[Leaf], choices: Choices) -> list[Leaf]:
    """Return the beginnings of these answers, but for the empty one, after which labels part."""
    return sorted({answer[:depth] for answer in answers for depth in range(1, len(answer))} & choices.keys())


def answer_trees(
    model: Any,
    tokens: PieceTokenizer,
    wording: Wording,
    trees: Iterable[PromptTree],
    *,
    both_ways: bool,
    conversations: int,
    row_tokens: int,
    gold: Mapping[str, Mapping[int, str]] | None = None,
    total: int | None = None,
) -> Iterator[Answer]:
    """Yield the answer for every branch, dialogue by dialogue, in order; the model must be in evaluation mode.

    Recent emotions are the model's own earlier answers: `conversations` of them advance together, each as far as it
    can be asked without an answer still to come, and one that ends hands its place on. What is known of a trunk is
    not computed again. With `gold`, emotions by dialogue and turn, they are told from there. With `total`, the number
    of branches, progress is shown.
    A forward pass has at most `row_tokens` tokens, unless a single question needs more.
    """
    waiting = (
        _Conversation(place, branches, tokens, wording, both_ways, gold, row_tokens)
        for place, branches in enumerate(_group_by_dialogue(trees))
    )
    heard = _converse(model, waiting, conversations)
    yield from in_order(progress(heard, total, "utterances answered") if total else heard)


def _converse(model: Any, waiting: "Iterator[_Conversation]", together: int) -> Iterator[tuple[int, Answer, bool]]:
    """Yield every answer with the number of its conversation, and whether it was the conversation's last."""
    active, passes = list(islice(waiting, together)), 0
    while active:
        asking = [(conversation, conversation.ask()) for conversation in active]
        for row in fill_rows(asking, lambda pair: pair[1], active[0].row_tokens):
            passes += 1
            if passes % PASSES_TO_RELEASE == 0:
                release_memory()
            for (conversation, part), log_p in zip(row, _score(model, row), strict=True):
                for answer in conversation.hear(part, log_p):
                    yield conversation.place, answer, conversation.has_ended
        active = [conversation for conversation in active if not conversation.has_ended]
        active += islice(waiting, together - len(active))


def fill_rows(items: Iterable[T], part_of: Callable[[T], Part], row_tokens: int) -> Iterator[list[T]]:
    """Yield the items in rows whose parts have at most `row_tokens` tokens together, or are one alone."""
    row: list[T] = []
    size = 0
    for item in items:
        tokens = len(part_of(item).ids)
        if row and size + tokens > row_tokens:
            yield row
            row, size = [], 0
        row.append(item)
        size += tokens
    if row:
        yield row


def in_order(heard: Iterable[tuple[int, T, bool]]) -> Iterator[T]:
    """Yield what is heard of many conversations, one conversation after the other, as soon as it is its turn.

    Each comes with the number of its conversation, from 0 on without gaps, and whether it is the conversation's last.
    """
    kept: dict[int, list[T]] = defaultdict(list)
    ended, due = set[int](), 0
    for place, one, is_last in heard:
        kept[place].append(one)
        ended |= {place} if is_last else set()
        while due in kept:
            yield from kept.pop(due)
            if due not in ended:
                break
            ended.remove(due)
            due += 1


def _score(model: Any, row: "Sequence[tuple[_Conversation, Part]]") -> "Sequence[torch.Tensor]":
    """Return log p of every label for every branch asked, a tensor of shape (branches, labels) for each part."""
    import torch

    tokens = row[0][0].tokens
    labels = list(tokens.answers.values())
    counts = [len(part.asked) for _, part in row]
    caches = [conversation.cache for conversation, _ in row]
    with torch.inference_mode():
        log_p = answer_log_likelihoods(model, [part for _, part in row], [labels] * sum(counts), tokens.choices, caches)
        return log_p.reshape(-1, len(labels)).cpu().split(counts)


class _Conversation:
    """A dialogue while it is answered: what is known of its trunk, and what the next question is."""

    def __init__(
        self,
        place: int,
        branches: Sequence[tuple[PromptTree, int]],
        tokens: PieceTokenizer,
        wording: Wording,
        both_ways: bool,
        gold: Mapping[str, Mapping[int, str]] | None,
        row_tokens: int,
    ) -> None:
        self.place, self.tokens, self.row_tokens = place, tokens, row_tokens
        self.answers: list[Answer] = []
        self.cache: TrunkCache | None = None
        self._branches, self._wording, self._both_ways, self._tree = branches, wording, both_ways, None
        self._own = gold is None
        self._emotions = dict((gold or {}).get(branches[0][0].dialogue, {}))
        self._leaves = find_leaves(tokens.answers.values(), tokens.choices)

    @property
    def has_ended(self) -> bool:
        return len(self.answers) == len(self._branches)

    def ask(self) -> Part:
        """Return the part of the tree that is to be computed next, and have `cache` hold what is known of its trunk."""
        from .attention import TrunkCache

        tree, first = self._branches[len(self.answers)]
        if self._tree is None or self._tree.tree is not tree:
            self._tree = TreeTokens(tree, self.tokens, self._wording, both_ways=self._both_ways)
            self.cache = TrunkCache()
        known = self.cache.known if self.cache else 0
        asked: list[tuple[int, list[int], list[Leaf]]] = []
        size, open_turns = 0, set[int]()
        for place, branch in enumerate(tree.branches[first:], start=first):
            after, ids = self._tree.after(place), self._tree.branch(place, self._emotions)
            size += len(ids) + sum(map(len, self._leaves))
            # What its own answers are told waits for them; the first question always has all that it is told.
            if not open_turns.isdisjoint(branch.recent) or (asked and after - known + size > self.row_tokens):
                break
            asked.append((after, ids, self._leaves))
            if self._own:
                open_turns.add(branch.turn)
        if first + len(asked) == len(tree.branches) and not known:
            self.cache = None  # nothing of this tree is needed again
        return self._tree.lay_out(asked, known=known)

    def hear(self, part: Part, log_p: "torch.Tensor") -> Iterator[Answer]:
        """Take in the scores of the branches that were asked, shape (branches, labels), one after the other."""
        if self.cache is not None:
            self.cache.known += part.trunk
        for row in log_p.exp().tolist():
            tree, place = self._branches[len(self.answers)]
            branch = tree.branches[place]
            prompt = unroll(tree, branch, self._emotions, self._wording)
            label = max(zip(row, self.tokens.answers, strict=True), key=lambda pair: pair[0])[1]
            if self._own:
                self._emotions[branch.turn] = label
            self.answers.append(Answer(tree.dialogue, branch, label, tuple(row), prompt))
            yield self.answers[-1]


def _group_by_dialogue(trees: Iterable[PromptTree]) -> Iterator[list[tuple[PromptTree, int]]]:
    group: list[tuple[PromptTree, int]] = []
    for tree in trees:
        if group and group[0][0].dialogue != tree.dialogue:
            yield group
            group = []
        group += [(tree, place) for place in range(len(tree.branches))]
    if group:
        yield group
