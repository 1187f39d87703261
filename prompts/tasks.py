"""What is asked: a dialogue becomes prompt trees with one branch for every utterance asked about."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..data.dialogue import Dialogue, Utterance
from ..data.errors import DataError
from ..data.labels import LabelSet
from .tokens import PieceTokenizer
from .tree import Branch, PromptTree, recent_emotions
from .wording import Piece, Wording

GAP = " [...] "
LONGEST = 32  # characters a token: a text that has more of them is taken for too long without being tokenised


@dataclass(frozen=True, slots=True)
class Task:
    """How prompts are made. Counts are in utterances, budgets in tokens.

    `history` is "window" (a prompt sees the last `window` utterances, the asked one included) or "full" (it sees all
    earlier ones of its segment; a segment repeats the last `window` - 1 utterances of the one before).
    """

    wording: Wording
    tokens: PieceTokenizer
    labels: LabelSet
    history: str
    window: int
    max_tokens: int
    biography_tokens: int
    fact_tokens: int
    recent_count: int

    @property
    def longest_label(self) -> str:
        """The label that takes most tokens where recent emotions are told."""
        return max(self.labels, key=lambda label: self.tokens.count([Piece(f" {label}")]))


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What may be told in the prompts of one dialogue, as texts of facts.

    `general` gives a speaker's general facts by name, and None for somebody of whom nothing at all is known;
    `nearest` those retrieved for a turn, the nearest first.
    """

    general: Callable[[str], Sequence[str] | None]
    nearest: Callable[[int], Sequence[str]]


NOTHING_KNOWN = Knowledge(general=lambda name: None, nearest=lambda turn: ())


def build_trees(
    dialogue: Dialogue, knowledge: Knowledge, task: Task, *, asked: Sequence[int], losses: Counter[str]
) -> Iterator[PromptTree]:
    """Yield the prompt trees of a dialogue; together they have one branch for each turn in `asked` (ascending).

    A prompt for turn t is made from turns up to t alone. Where the token budget does not hold them all, the oldest
    turns go, and an utterance longer than a quarter of it (in tokens, or in characters, `LONGEST` to a token) loses
    its middle; `losses` counts both.
    Raises DataError where the budget does not even hold one utterance and its question.
    """
    draft, shown = _Draft(dialogue, knowledge, task, losses), set[int]()
    plan = _plan_windows if task.history == "window" else _plan_segments
    for segment, (first, turns) in enumerate(plan(asked, draft)):
        trunk, spans = draft.trunk(first, turns[-1])
        shown.update(range(first, turns[-1] + 1))
        losses["prompts without their oldest turns"] += sum(first > draft.first_wanted(turn) for turn in turns)
        branches = tuple(replace(draft.branch(turn), after=spans[turn - first][1]) for turn in turns)
        yield PromptTree(dialogue.id, segment, trunk, spans, branches)
    losses["utterances without their middle"] += len(shown & draft.shortened)


def _plan_windows(asked: Sequence[int], draft: "_Draft") -> Iterator[tuple[int, list[int]]]:
    for turn in asked:
        yield draft.first_that_fits(draft.first_wanted(turn), turn), [turn]


def _plan_segments(asked: Sequence[int], draft: "_Draft") -> Iterator[tuple[int, list[int]]]:
    first, turns = 0, []
    for turn in asked:
        if not turns or not draft.fits(first, turn):
            if turns:
                yield first, turns
            first, turns = draft.first_that_fits(max(0, turn - draft.task.window + 1) if turns else first, turn), []
        turns.append(turn)
    if turns:
        yield first, turns


class _Draft:
    """One dialogue while its trees are planned: what is needed of it is worded once and its tokens counted once."""

    def __init__(self, dialogue: Dialogue, knowledge: Knowledge, task: Task, losses: Counter[str]) -> None:
        self.dialogue, self.knowledge, self.task, self.losses = dialogue, knowledge, task, losses
        self.head = (*task.tokens.opening, *task.wording.pieces("instruction", labels=", ".join(task.labels)))
        self.shortened: set[int] = set()
        self._utterances: dict[int, tuple[str, tuple[Piece, ...]]] = {}
        self._turns_of: dict[str, list[int]] = defaultdict(list)
        for turn, utterance in enumerate(dialogue.utterances):
            for speaker in utterance.speakers:
                self._turns_of[speaker].append(turn)
        self._introductions: dict[str, tuple[Piece, ...]] = {}
        self._branches: dict[int, Branch] = {}

    def trunk(self, first: int, last: int) -> tuple[tuple[Piece, ...], tuple[tuple[int, int], ...]]:
        """Return the trunk of turns `first` to `last`, and where in it each utterance begins and ends."""
        pieces, spans, introduced = list(self.head), [], set[str]()
        for turn in range(first, last + 1):
            for speaker in self.dialogue.utterances[turn].speakers:
                if speaker not in introduced:
                    pieces += self._introduce(speaker)
                    introduced.add(speaker)
            _, said = self._utterance(turn)
            spans.append((len(pieces), len(pieces) + len(said)))
            pieces += said
        return tuple(pieces), tuple(spans)

    def branch(self, turn: int) -> Branch:
        """Return the branch of a turn; its `after` is still to be set."""
        if turn not in self._branches:
            utterance, task = self.dialogue.utterances[turn], self.task
            text, _ = self._utterance(turn)
            asked = {"speaker": utterance.speaker, "text": text, "labels": ", ".join(task.labels)}
            self._branches[turn] = Branch(
                utterance=utterance.id,
                turn=turn,
                speaker=utterance.speaker,
                after=0,
                facts=self._tell_facts(turn, utterance),
                recent=self._find_recent(turn),
                question=(*task.wording.pieces("question", **asked), *task.tokens.closing),
                label=utterance.label,
            )
        return self._branches[turn]

    def first_wanted(self, turn: int) -> int:
        """Return the first turn that the prompt for `turn` shows where the budget allows."""
        return 0 if self.task.history == "full" else max(0, turn - self.task.window + 1)

    def first_that_fits(self, first: int, turn: int) -> int:
        while not self.fits(first, turn):
            if first == turn:
                utterance = self.dialogue.utterances[turn]
                raise DataError(
                    f"{utterance.source or self.dialogue.id}: the prompt for utterance {utterance.id!r} needs "
                    f"{self._count(turn, turn)} tokens without any history; `prompts.max_tokens` is "
                    f"{self.task.max_tokens}. Raise it, or lower `prompts.biography_tokens` or `prompts.fact_tokens`."
                )
            first += 1
        return first

    def fits(self, first: int, turn: int) -> bool:
        return self._count(first, turn) <= self.task.max_tokens

    def _count(self, first: int, turn: int) -> int:
        tokens, branch = self.task.tokens, self.branch(turn)
        # Which emotions will be told is not known yet: room is kept for the longest.
        recent = recent_emotions(branch, dict.fromkeys(branch.recent, self.task.longest_label), self.task.wording)
        answer = max(len(ids) for ids in tokens.answers.values())
        return tokens.count((*self.trunk(first, turn)[0], *branch.facts, *recent, *branch.question)) + answer

    def _utterance(self, turn: int) -> tuple[str, tuple[Piece, ...]]:
        """Return the text of a turn as prompts show it, and its pieces in the trunk."""
        if turn not in self._utterances:
            utterance = self.dialogue.utterances[turn]
            text = self._shorten(utterance)
            self.shortened |= {turn} if text != utterance.text else set()
            pieces = self.task.wording.pieces("utterance", speaker=utterance.speaker, text=text)
            self._utterances[turn] = (text, pieces)
        return self._utterances[turn]

    def _introduce(self, speaker: str) -> tuple[Piece, ...]:
        if self.task.biography_tokens == 0:
            return ()
        if speaker not in self._introductions:
            self._introductions[speaker] = self._word_introduction(speaker)
        return self._introductions[speaker]

    def _word_introduction(self, speaker: str) -> tuple[Piece, ...]:
        known = self.knowledge.general(speaker)
        if known is None:
            return self.task.wording.pieces("unknown", speaker=speaker)
        facts = self._within(self.task.biography_tokens, known, "general facts left out")
        return self.task.wording.pieces("introduction", speaker=speaker, biography=" ".join(facts)) if facts else ()

    def _find_recent(self, turn: int) -> tuple[int, ...]:
        """Return the last earlier turns of whoever speaks at `turn`, the latest first."""
        earlier: set[int] = set()
        for speaker in self.dialogue.utterances[turn].speakers:
            turns = self._turns_of[speaker]
            stop = bisect_left(turns, turn)
            earlier.update(turns[max(0, stop - self.task.recent_count) : stop])
        return tuple(sorted(earlier, reverse=True)[: self.task.recent_count])

    def _tell_facts(self, turn: int, utterance: Utterance) -> tuple[Piece, ...]:
        if self.task.fact_tokens == 0:
            return ()
        facts = self._within(self.task.fact_tokens, self.knowledge.nearest(turn), "retrieved facts left out")
        return tuple(
            piece for fact in facts for piece in self.task.wording.pieces("fact", speaker=utterance.speaker, fact=fact)
        )

    def _within(self, budget: int, texts: Sequence[str], what: str) -> list[str]:
        """Keep the texts in order while they fit the budget together, passing over and counting those that do not."""
        kept: list[str] = []
        for text in texts:
            if self._fits_into(budget, " ".join([*kept, text])):
                kept.append(text)
        self.losses[what] += len(texts) - len(kept)
        return kept

    def _shorten(self, utterance: Utterance) -> str:
        half, text = len(utterance.text) // 2, utterance.text
        # The ends say most of what is felt.
        while half and not self._fits_into(self.task.max_tokens // 4, text):
            half = half * 3 // 4
            text = utterance.text[:half] + GAP + utterance.text[len(utterance.text) - half :]
        return text

    def _fits_into(self, budget: int, text: str) -> bool:
        """Whether a text takes `budget` tokens at most; a megabyte is not read to find out that it does not."""
        return len(text) <= LONGEST * budget and self.task.tokens.count([Piece(text)]) <= budget
