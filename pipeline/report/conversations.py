"""Conversations and prompts for the page: which are shown, and how their turns are marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from ..predictions import Prediction, by_dialogue

T = TypeVar("T")
LONGEST = 40  # turns shown of a conversation


@dataclass(frozen=True, slots=True)
class Conversation:
    """A dialogue with its answers. `turns` are the first `LONGEST` at most; the counts are those of all."""

    id: str
    turns: tuple[Prediction, ...]
    length: int
    labelled: int
    right: int
    worst: bool

    @property
    def oracle(self) -> bool:
        return any(turn.oracle for turn in self.turns)

    @property
    def speakers(self) -> list[str]:
        """Who speaks, by first appearance."""
        return list(dict.fromkeys(turn.speaker for turn in self.turns))


def choose_conversations(predictions: Sequence[Prediction], count: int) -> list[Conversation]:
    """Return `count` dialogues in their order: one in which the model errs much, the others evenly from all.

    That one has the highest share of errors in the longer half: in three turns, everything wrong is no news.
    """
    dialogues = [sorted(answers, key=lambda answer: answer.turn) for answers in by_dialogue(predictions).values()]
    worst = _find_worst(dialogues) if count else None
    others = [place for place in range(len(dialogues)) if place != worst]
    chosen = pick_evenly(others, count) if worst is None else [*pick_evenly(others, count - 1), worst]
    return [_describe(dialogues[place], place == worst) for place in sorted(chosen)]


def pick_evenly(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items (all, where there are fewer) in the middle of as many equal parts."""
    count = min(count, len(items))
    return [items[(2 * part + 1) * len(items) // (2 * count)] for part in range(count)]


def shorten_labels(labels: Sequence[str]) -> dict[str, str]:
    """Return each label's first letters: at least two, and as many as it takes to tell them all apart."""
    size = next(size for size in range(2, 100) if len({label[:size] for label in labels}) == len(set(labels)))
    return {label: label[:size] for label in labels}


def mark(turn: Prediction) -> str:
    if turn.gold is None:
        return "unlabelled"
    return "right" if turn.label == turn.gold else "wrong"


def _find_worst(dialogues: Sequence[Sequence[Prediction]]) -> int | None:
    """Return the place of the dialogue with the highest share of errors (then with most) in the longer half."""
    marks = [[mark(turn) for turn in turns] for turns in dialogues]
    labelled = {place: len(row) - row.count("unlabelled") for place, row in enumerate(marks)}
    places = [place for place, size in labelled.items() if size]
    if not places:
        return None
    least = median(labelled[place] for place in places)
    errors = {place: marks[place].count("wrong") for place in places if labelled[place] >= least}
    return max(errors, key=lambda place: (errors[place] / labelled[place], errors[place]))


def _describe(turns: Sequence[Prediction], worst: bool) -> Conversation:
    marks = [mark(turn) for turn in turns]
    return Conversation(
        id=turns[0].dialogue,
        turns=tuple(turns[:LONGEST]),
        length=len(turns),
        labelled=len(marks) - marks.count("unlabelled"),
        right=marks.count("right"),
        worst=worst,
    )
