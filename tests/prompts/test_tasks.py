"""What is asked: prompt trees of random conversations against a plain rendering, one prompt at a time."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from erckit.data.dialogue import Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.data.labels import EMORYNLP
from erckit.prompts.tasks import GAP, Knowledge, Task, build_trees
from erckit.prompts.tree import PromptTree, read_aloud, unroll
from erckit.prompts.wording import Piece, read_wording
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

BRIEF, INSTRUCT = read_wording("brief"), read_wording("instruct")
TOKENIZERS = [("embedded", False), ("qwen2", False), ("qwen2", True), ("llama", True), ("phi3", True)]
OLDEST, MIDDLE = "prompts without their oldest turns", "utterances without their middle"

WORDS = ["So", "Tom", "leaned", "on", "her", "yesterday...", "[SEP]", "<|im_end|>", "{x}", "é", "☃", "no"]
NAMES = ["Ada", "Ben", "Cleo Ray", "{Dee}"]


def say(start: int, count: int) -> str:
    """Some words; few numbers to draw make many different texts."""
    return " ".join(WORDS[(start + 5 * place) % len(WORDS)] for place in range(count))


speakers = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(tuple)
facts = st.lists(st.builds(say, st.integers(0, 11), st.integers(1, 9)), max_size=3)


@dataclass(frozen=True)
class Case:
    """A conversation, the turns asked about, what is known, and how to ask."""

    dialogue: Dialogue
    asked: list[int]
    general: dict[str, list[str] | None]
    nearest: list[list[str]]
    task: Task

    def build(self) -> tuple[list[PromptTree], Counter[str]]:
        losses: Counter[str] = Counter()
        knowledge = Knowledge(general=lambda name: self.general.get(name), nearest=lambda turn: self.nearest[turn])
        return list(build_trees(self.dialogue, knowledge, self.task, asked=self.asked, losses=losses)), losses


@st.composite
def dialogues(draw) -> Dialogue:
    utterances = [
        Utterance(
            id=f"talk-{turn:02d}",
            speakers=draw(speakers),
            text=say(draw(st.integers(0, 11)), draw(st.integers(1, 5) | st.integers(1, 60))),
            label=draw(st.sampled_from([None, "mad", "powerful"])),
        )
        for turn in range(draw(st.integers(1, 9)))
    ]
    return Dialogue("talk", tuple(utterances))


@st.composite
def cases(draw, task_of, history: str) -> Case:
    dialogue = draw(dialogues())
    turns = range(len(dialogue.utterances))
    kind, chat = draw(st.sampled_from(TOKENIZERS))
    budgets = st.sampled_from([0, 8, 24])
    task = task_of(
        kind,
        chat,
        draw(st.sampled_from([BRIEF, INSTRUCT])),
        history=history,
        window=draw(st.integers(1, 6)),
        max_tokens=draw(st.sampled_from([64, 200, 300, 400, 600])),
        biography_tokens=draw(budgets),
        fact_tokens=draw(budgets),
        recent_count=draw(st.integers(0, 3)),
    )
    return Case(
        dialogue,
        asked=draw(st.just(list(turns)) | st.sets(st.sampled_from(turns)).map(sorted)),
        general={name: draw(st.none() | facts) for name in NAMES},
        nearest=[draw(facts) for _ in turns],
        task=task,
    )


use = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=60,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink such cases takes minutes, and they are small
)


class Plain:
    """The prompts of a case, worded plainly, one by one."""

    def __init__(self, case: Case) -> None:
        self.case, self.task, self.utterances = case, case.task, case.dialogue.utterances
        self.shown = [self._show(utterance.text) for utterance in self.utterances]
        self.said = [
            self.task.wording.pieces("utterance", speaker=utterance.speaker, text=shown)
            for utterance, shown in zip(self.utterances, self.shown, strict=True)
        ]
        self.introductions = {name: self._introduce(name) for name in NAMES}

    def trunk(self, first: int, last: int) -> tuple[Piece, ...]:
        pieces = [*self.task.tokens.opening, *self.task.wording.pieces("instruction", labels=", ".join(EMORYNLP))]
        introduced = set()
        for turn in range(first, last + 1):
            for name in self.utterances[turn].speakers:
                pieces += [] if name in introduced else self.introductions[name]
                introduced.add(name)
            pieces += self.said[turn]
        return tuple(pieces)

    def branch(self, turn: int, emotion: str) -> tuple[Piece, ...]:
        """What follows the trunk where all recent emotions are `emotion`."""
        task, asked = self.task, self.utterances[turn]
        same = [t for t in range(turn) if set(self.utterances[t].speakers) & set(asked.speakers)]
        told = [
            task.wording.text("recent_item", label=emotion, turns="1 turn" if turn - t == 1 else f"{turn - t} turns")
            for t in sorted(same, reverse=True)[: task.recent_count]
        ]
        known = self._first_fitting(task.fact_tokens, self.case.nearest[turn])
        fields = {"speaker": asked.speaker, "text": self.shown[turn], "labels": ", ".join(EMORYNLP)}
        return (
            *(piece for fact in known for piece in task.wording.pieces("fact", speaker=asked.speaker, fact=fact)),
            *(task.wording.pieces("recent", speaker=asked.speaker, recent=", ".join(told)) if told else ()),
            *task.wording.pieces("question", **fields),
            *task.tokens.closing,
        )

    def fits(self, first: int, turn: int) -> bool:
        """Whether the prompt fits, whatever emotion is told and whatever answer is given."""
        longest = max(self.task.tokens.count(self.branch(turn, emotion)) for emotion in EMORYNLP)
        answer = max(map(len, self.task.tokens.answers.values()))
        return self.task.tokens.count(self.trunk(first, turn)) + longest + answer <= self.task.max_tokens

    def first_that_fits(self, wanted: int, turn: int) -> int | None:
        return next((first for first in range(wanted, turn + 1) if self.fits(first, turn)), None)

    def _first_fitting(self, budget: int, texts: Sequence[str]) -> list[str]:
        """The texts that fit into what those before them leave of a budget, counted as one text."""
        kept: list[str] = []
        for text in texts:
            kept += [text] if self.task.tokens.count([Piece(" ".join([*kept, text]))]) <= budget else []
        return kept

    def _introduce(self, name: str) -> tuple[Piece, ...]:
        if not self.task.biography_tokens:
            return ()
        if self.case.general[name] is None:
            return self.task.wording.pieces("unknown", speaker=name)
        known = " ".join(self._first_fitting(self.task.biography_tokens, self.case.general[name]))
        return self.task.wording.pieces("introduction", speaker=name, biography=known) if known else ()

    def _show(self, text: str) -> str:
        half, shown = len(text) // 2, text
        while self.task.tokens.count([Piece(shown)]) > self.task.max_tokens // 4:
            half = half * 3 // 4
            shown = text[:half] + GAP + text[len(text) - half :]
        return shown


Plan = list[tuple[int, list[int]]] | None


def plan_windows(plain: Plain) -> Plan:
    """The first turn and the asked turns of every tree, or None where a prompt does not fit."""
    plan = []
    for turn in plain.case.asked:
        first = plain.first_that_fits(max(0, turn - plain.task.window + 1), turn)
        if first is None:
            return None
        plan.append((first, [turn]))
    return plan


def plan_segments(plain: Plain) -> Plan:
    plan: list[tuple[int, list[int]]] = []
    for turn in plain.case.asked:
        if plan and plain.fits(plan[-1][0], turn):
            plan[-1][1].append(turn)
        else:
            first = plain.first_that_fits(max(0, turn - plain.task.window + 1) if plan else 0, turn)
            if first is None:
                return None
            plan.append((first, [turn]))
    return plan


def check(plain: Plain, plan: Plan, wanted: Callable[[int], int]) -> None:
    """Check all prompts of a case against the plan, what is cut, and what is counted."""
    if plan is None:
        with pytest.raises(DataError, match=r"tokens without any history; `prompts.max_tokens` is"):
            plain.case.build()
        return
    trees, losses = plain.case.build()
    tokens, budget = plain.task.tokens, plain.task.max_tokens
    assert [(tree.dialogue, tree.segment) for tree in trees] == [("talk", place) for place in range(len(plan))]
    assert [[branch.turn for branch in tree.branches] for tree in trees] == [turns for _, turns in plan]
    for tree, (first, turns) in zip(trees, plan, strict=True):
        assert tree.trunk == plain.trunk(first, turns[-1])
        for branch in tree.branches:
            utterance = plain.utterances[branch.turn]
            assert (branch.utterance, branch.label) == (utterance.id, utterance.label)
            for emotion, answer in tokens.answers.items():
                prompt = unroll(tree, branch, dict.fromkeys(range(branch.turn), emotion), plain.task.wording)
                assert prompt == (*plain.trunk(first, branch.turn), *plain.branch(branch.turn, emotion))
                assert tokens.count(prompt) + len(answer) <= budget
    assert losses[OLDEST] == sum(first > wanted(turn) for first, turns in plan for turn in turns)
    shown = {turn for first, turns in plan for turn in range(first, turns[-1] + 1)}
    assert losses[MIDDLE] == sum(tokens.count([Piece(plain.utterances[turn].text)]) > budget // 4 for turn in shown)


@use
@given(st.data())
def test_a_window_shows_the_last_utterances_or_as_many_of_them_as_fit(task_of, data):
    plain = Plain(data.draw(cases(task_of, "window")))

    check(plain, plan_windows(plain), lambda turn: max(0, turn - plain.task.window + 1))


@use
@given(st.data())
def test_segments_show_all_earlier_utterances_or_as_many_as_fit_and_repeat_a_window(task_of, data):
    plain = Plain(data.draw(cases(task_of, "full")))

    check(plain, plan_segments(plain), lambda turn: 0)


@pytest.mark.parametrize("history", ["window", "full"])
def test_every_budget_is_kept_and_used_to_the_last_token(task_of, history):
    dialogue = Dialogue(
        "talk", tuple(Utterance(f"talk-{t}", (NAMES[t % 2],), say(t, 3 + t % 4), "mad") for t in range(9))
    )
    general = {name: [say(2, 3), say(7, 5), say(4, 2)] for name in NAMES}
    nearest = [[say(turn, 4), say(turn + 3, 3)] for turn in range(9)]
    for budget in range(120, 240):
        changes = {"max_tokens": budget, "biography_tokens": budget % 40, "fact_tokens": budget % 30, "window": 4}
        # With this tokenizer all answers are one token, and not all emotions are, where they are told.
        task = task_of("qwen2", True, history=history, **changes)
        plain = Plain(Case(dialogue, list(range(9)), general, nearest, task))
        wanted = {turn: 0 if history == "full" else max(0, turn - 3) for turn in range(9)}
        check(plain, plan_windows(plain) if history == "window" else plan_segments(plain), wanted.__getitem__)


@use
@given(st.data(), st.sampled_from(["window", "full"]))
def test_nothing_later_changes_a_prompt(task_of, data, history):
    """The causal promise, for whatever comes later: other texts, other speakers, other labels, more or fewer turns."""
    case = data.draw(cases(task_of, history))
    other = data.draw(dialogues())
    shared = data.draw(st.integers(0, len(case.dialogue.utterances) - 1)) + 1
    later = tuple(
        replace(utterance, id=f"later-{turn}") for turn, utterance in enumerate(other.utterances[shared:], shared)
    )
    changed = replace(
        case,
        dialogue=Dialogue("talk", case.dialogue.utterances[:shared] + later),
        asked=[turn for turn in case.asked if turn < shared] + list(range(shared, shared + len(later))),
        nearest=case.nearest[:shared] + [["later"]] * len(later),
    )
    before, after = prompts_up_to(case, shared), prompts_up_to(changed, shared)

    assume(before is not None and after is not None)
    assert before == after


def prompts_up_to(case: Case, shared: int) -> list[str] | None:
    try:
        trees, _ = case.build()
    except DataError:
        return None
    return [
        read_aloud(unroll(tree, branch, dict.fromkeys(range(shared), "mad"), case.task.wording))
        for tree in trees
        for branch in tree.branches
        if branch.turn < shared
    ]
