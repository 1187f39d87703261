"""The packed rendering: a tree's trunk once, then its branches, each seeing exactly what its unrolled prompt holds.

What a token sees is the union of three stretches of tokens: of the trunk, of its branch, and of its own leaf. A leaf
is a beginning of an answer after which labels part (`prompts.tokens.find_choices`); it hangs from its branch like a
branch from the trunk. Positions go on from where a stretch leaves the one before, as if the rest were not there.

Attention is causal, or both ways within an utterance and within a branch up to its answer, and causal between them:
what a bidirectional encoder, such as the embedded model, knows from its pre-training. Nothing of later utterances is
seen either way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .tokens import PieceTokenizer
from .tree import PromptTree, recent_emotions
from .wording import Wording

Leaf = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Some tokens of one tree, to be computed together, behind those of its trunk that are known already.

    `ids` and `positions` have shape (tokens,). `seen` has shape (tokens, 6): the beginnings and ends of the three
    stretches that a token sees, counted over the `known` tokens and then these. `trunk` is how many of the tokens
    belong to the trunk: what is known next time. `asked` tells for every branch where each decision falls: the
    answer's beginning, () at first, and the place among the tokens whose logits decide how it goes on.
    """

    ids: np.ndarray
    positions: np.ndarray
    seen: np.ndarray
    known: int
    trunk: int
    asked: tuple[Mapping[Leaf, int], ...]


class TreeTokens:
    """The token ids of one tree: its trunk once, its branches as they are asked."""

    def __init__(self, tree: PromptTree, tokens: PieceTokenizer, wording: Wording, *, both_ways: bool) -> None:
        self.tree, self._tokens, self._wording = tree, tokens, wording
        pieces = [tokens.ids([piece]) for piece in tree.trunk]
        self.trunk = np.array([token for ids in pieces for token in ids], dtype=np.int64)
        self._ends = np.cumsum([0, *map(len, pieces)])
        self._blocks = self._ends[[stop for _, stop in tree.spans]] if both_ways else None

    def after(self, place: int) -> int:
        """Return the number of trunk tokens that a branch sees."""
        return int(self._ends[self.tree.branches[place].after])

    def branch(self, place: int, emotions: Mapping[int, str]) -> list[int]:
        """Return the ids of a branch up to where its answer begins, the given emotions told (by turn)."""
        branch = self.tree.branches[place]
        told = recent_emotions(branch, emotions, self._wording)
        return self._tokens.ids((*branch.facts, *told, *branch.question))

    def said(self) -> tuple[int, list[int], int]:
        """Return the trunk's last utterance by itself: how many tokens stand before it, its ids, where its words begin.

        It begins where the utterance before it ends: an introduction of its speaker belongs to it.
        """
        *earlier, last = self.tree.spans
        before = int(self._ends[earlier[-1][1]]) if earlier else 0
        start, stop = (int(self._ends[place]) for place in last)
        return before, self.trunk[before:stop].tolist(), start - before

    def lay_out(self, branches: Sequence[tuple[int, Sequence[int], Sequence[Leaf]]], *, known: int = 0) -> Part:
        """Lay out the trunk and these branches (`lay_out`)."""
        return lay_out(self.trunk, branches, known=known, blocks=self._blocks)


def lay_out(
    trunk: np.ndarray,
    branches: Sequence[tuple[int, Sequence[int], Sequence[Leaf]]],
    *,
    known: int = 0,
    blocks: np.ndarray | None = None,
) -> Part:
    """Lay the trunk after its `known` tokens and then every branch with its leaves one after another.

    A branch is the number of trunk tokens that it sees, its ids, and its leaves. What no branch sees is left out.
    With `blocks`, where the trunk's utterances end, ascending, attention is both ways within each and within a branch.
    """
    reach = max(after for after, _, _ in branches)
    ids: list[int] = trunk[known:reach].tolist()
    positions = list(range(known, reach))
    stops = np.arange(known, reach) + 1 if blocks is None else blocks[np.searchsorted(blocks, positions, side="right")]
    seen = [(0, stop, 0, 0, 0, 0) for stop in stops.tolist()]
    asked = []
    for after, branch, leaves in branches:
        start, stop = known + len(ids), known + len(ids) + len(branch)
        ids += branch
        positions += range(after, after + len(branch))
        seen += [(0, after, start, place + 1 if blocks is None else stop, 0, 0) for place in range(start, stop)]
        decided: dict[Leaf, int] = {(): len(ids) - 1}
        for leaf in leaves:
            first, last = known + len(ids), known + len(ids) + len(leaf)
            ids += leaf
            positions += range(after + len(branch), after + len(branch) + len(leaf))
            seen += [(0, after, start, stop, first, place + 1) for place in range(first, last)]
            decided[leaf] = len(ids) - 1
        asked.append(decided)
    return Part(np.array(ids), np.array(positions), np.array(seen), known, reach - known, tuple(asked))


def unpack(part: Part, branch: int, leaf: Leaf = ()) -> list[int]:
    """Return what the deciding token of a branch sees, in order of position: the unrolled ids, where none are known."""
    assert part.known == 0
    stretches = part.seen[part.asked[branch][leaf]].reshape(3, 2)
    return [int(token) for start, stop in stretches for token in part.ids[start:stop]]
