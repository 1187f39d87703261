"""What an epoch of training is made of: every dialogue visited, each visit asking about some of its utterances.

A visit is one tree, its trunk computed once, with a part of its branches. An optimiser step holds visits to many
dialogues, shared out over forward passes of about equal size. Everything is drawn from seed and epoch alone, so that
a resumed run sees the same.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..data.errors import DataError
from ..data.labels import LabelSet
from ..prompts.packing import Leaf, Part, TreeTokens, unpack
from ..prompts.tokens import PieceTokenizer
from ..prompts.tree import Branch, PromptTree, gold_emotions, unroll
from ..prompts.wording import Wording
from .loss import confusion_errors
from .scoring import find_leaves


@dataclass(frozen=True, slots=True)
class Batches:
    """How examples are put together: `step` utterances an optimiser step, at most `together` of a dialogue (0: all).

    `row_tokens` is about how many tokens a forward pass holds; `processes` share the passes of a step.
    """

    step: int
    together: int
    row_tokens: int
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One forward pass: parts of trees, and for all their branches in order the label and the ids of its answer.

    `asked` has the ids of dialogue and utterance that each branch asks about.
    """

    parts: tuple[Part, ...]
    labels: tuple[str, ...]
    answers: tuple[Leaf, ...]
    asked: tuple[tuple[str, str], ...]


class TrainingPrompts:
    """The training examples, put together and worded anew for each epoch.

    Some gold recent emotions, a share of `noise`, give way to errors of the model, so that training resembles
    inference, where recent emotions are the model's own. The draw depends on seed, epoch, example and the last look
    at dev before the epoch, whose `confusion` it follows.
    """

    def __init__(
        self,
        trees: Sequence[PromptTree],
        labels: LabelSet,
        tokens: PieceTokenizer,
        wording: Wording,
        *,
        both_ways: bool,
        batches: Batches,
        noise: float,
        seed: int,
    ) -> None:
        self.labels, self.tokens, self.wording = labels, tokens, wording
        self.both_ways, self._noise, self._seed, self._batches = both_ways, noise, seed, batches
        self._gold = gold_emotions(trees)
        self._trees = [TreeTokens(tree, tokens, wording, both_ways=both_ways) for tree in trees]
        places = [[place for place, branch in enumerate(tree.branches) if branch.label is not None] for tree in trees]
        self._examples = [(tree, place) for tree, branches in enumerate(places) for place in branches]
        counts = Counter(self._branch(example).label for example in range(len(self._examples)))
        self.counts = {label: counts[label] for label in labels}
        everything = range(len(self._examples))
        self._by_tree = [
            list(group) for _, group in groupby(everything, key=lambda example: self._examples[example][0])
        ]
        self._sizes = [self._measure(example) for example in everything]
        # Forward passes of an optimiser step, over all processes; the same in every step of every epoch.
        self.rows_per_step = self._count_rows(self._plan_steps(0))
        self.start_epoch(0, None)

    def __len__(self) -> int:
        """The number of rows of an epoch, the same in all of them."""
        return len(self._rows)

    def start_epoch(self, epoch: int, confusion: Sequence[Sequence[int]] | None) -> None:
        self._epoch = epoch
        self._errors = confusion_errors(confusion, list(self.counts.values()))
        steps = self._plan_steps(epoch)
        self._rows = [row for step in steps for row in _share_out(step, self._cost, self.rows_per_step)]

    def row(self, place: int) -> Row:
        """Return a row of this epoch."""
        parts, labels, answers, asked = [], [], [], []
        for visit in self._rows[place]:
            branches = []
            for example in visit:
                label = str(self._branch(example).label)
                answer = self.tokens.answers[label]
                number, branch = self._examples[example]
                tree = self._trees[number]
                ids = tree.branch(branch, self._told(example))
                branches.append((tree.after(branch), ids, find_leaves([answer], self.tokens.choices)))
                labels.append(label)
                answers.append(answer)
                asked.append((tree.tree.dialogue, self._branch(example).utterance))
            parts.append(self._trees[self._examples[visit[0]][0]].lay_out(branches))
        return Row(tuple(parts), tuple(labels), tuple(answers), tuple(asked))

    def prove(self) -> None:
        """Show for every example that its answer is decided where its unrolled prompt with the answer decides it.

        Raises DataError with both, as text, for one where it is not.
        """
        for place in range(len(self)):
            row = self.row(place)
            branches = [(part, branch) for part in row.parts for branch in range(len(part.asked))]
            examples = [example for visit in self._rows[place] for example in visit]
            for (part, branch), example, answer in zip(branches, examples, row.answers, strict=True):
                tree, told = self._trees[self._examples[example][0]].tree, self._told(example)
                prompt = self.tokens.ids(unroll(tree, self._branch(example), told, self.wording))
                for leaf in part.asked[branch]:
                    seen, expected = unpack(part, branch, leaf), [*prompt, *answer[: len(leaf)]]
                    if seen != expected:
                        decode = self.tokens.tokenizer.decode
                        raise DataError(
                            f"{self._branch(example).utterance}: packed, the answer follows on {decode(seen)!r}, "
                            f"expected {decode(expected)!r}. This is a fault of erckit; please report it."
                        )

    def _plan_steps(self, epoch: int) -> list[list[tuple[int, ...]]]:
        """Return the steps of an epoch, each a list of visits, each the examples of one tree in order."""
        generator = np.random.default_rng([self._seed, epoch])
        visits: list[tuple[int, ...]] = []
        for examples in self._by_tree:
            count = -(-len(examples) // (self._batches.together or len(examples)))
            for part in np.array_split(generator.permutation(examples), count):
                visits.append(tuple(sorted(part.tolist())))
        steps = max(1, round(len(self._examples) / self._batches.step))
        order = np.array_split(generator.permutation(len(visits)), min(steps, len(visits)))
        return [[visits[place] for place in step] for step in order]

    def _count_rows(self, steps: Sequence[Sequence[tuple[int, ...]]]) -> int:
        """Return how many rows hold any step within the budget; each row has a visit, and each process its rows."""
        processes, fewest = self._batches.processes, min(map(len, steps))
        most = max(sum(map(self._cost, step)) for step in steps)
        if fewest < processes:
            raise DataError(
                f"an optimiser step visits {fewest} dialogues, which {processes} processes cannot share. "
                "Raise `train.batch_size`, or lower `train.together`."
            )
        wanted = -(-most // self._batches.row_tokens)
        return min(-(-wanted // processes) * processes, fewest // processes * processes)

    def _cost(self, visit: Sequence[int]) -> int:
        """Return the tokens of a visit, with every recent emotion told."""
        tree, last = self._examples[visit[-1]]
        return self._trees[tree].after(last) + sum(self._sizes[example] for example in visit)

    def _measure(self, example: int) -> int:
        """Return the number of tokens of an example's branch, every recent emotion told."""
        number, place = self._examples[example]
        tree, answer = self._trees[number], self.tokens.answers[str(self._branch(example).label)]
        return len(tree.branch(place, self._gold[tree.tree.dialogue])) + len(answer) - 1

    def _branch(self, example: int) -> Branch:
        tree, place = self._examples[example]
        return self._trees[tree].tree.branches[place]

    def _told(self, example: int) -> Mapping[int, str]:
        gold = self._gold[self._trees[self._examples[example][0]].tree.dialogue]
        generator = np.random.default_rng([self._seed, self._epoch, example])
        told = {}
        for turn in self._branch(example).recent:
            if turn in gold:
                wrong = generator.random() < self._noise
                errors = self._errors[self.labels.index(gold[turn])]
                told[turn] = self.labels.names[generator.choice(len(self.labels), p=errors)] if wrong else gold[turn]
        return told


def _share_out(
    visits: Sequence[tuple[int, ...]], cost: Callable[[Sequence[int]], int], rows: int
) -> list[list[tuple[int, ...]]]:
    """Share visits out over rows of about equal cost, none of them empty: the largest first, to where least is."""
    shared: list[list[tuple[int, ...]]] = [[] for _ in range(rows)]
    sums = [0] * rows
    for visit in sorted(visits, key=cost, reverse=True):
        least = sums.index(min(sums))
        shared[least].append(visit)
        sums[least] += cost(visit)
    return shared
