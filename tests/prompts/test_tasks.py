"""What is asked: prompt trees of random conversations against a plain rendering, one prompt at a time."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from erckit.data.dialogue import Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.data.labels import EMORYNLP
from erckit.prompts.tasks import GAP, Knowledge, Task, build_trees
from erckit.prompts.tokens import PieceTokenizer
from erckit.prompts.tree import PromptTree, read_aloud, recent_emotions, unroll
from erckit.prompts.wording import Piece, read_wording
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

BRIEF, INSTRUCT = read_wording("brief"), read_wording("instruct")
TOKENIZERS = [("embedded", False), ("qwen2", False), ("qwen2", True), ("llama", True), ("phi3", True)]
OLDEST, MIDDLE = "prompts without their oldest turns", "utterances without their middle"

words = st.sampled_from(
    ["So", "Tom", "leaned", "on", "her", "yesterday...", "[SEP]", "<|im_end|>", "{x}", "é", "☃", "no"]
)
names = st.sampled_from(["Ada", "Ben", "Cleo Ray", "{Dee}"])
facts = st.lists(st.lists(words, min_size=1, max_size=9).map(" ".join), max_size=4)


@dataclass(frozen=True)
class Case:
    """A conversation, the turns asked about, what is known, and how to ask."""

    dialogue: Dialogue
    asked: list[int]
    general: dict[str, list[str]]
    nearest: list[list[str]]
    task: Task

    def build(self) -> tuple[list[PromptTree], Counter[str]]:
        losses: Counter[str] = Counter()
        knowledge = Knowledge(general=lambda name: self.general.get(name, []), nearest=lambda turn: self.nearest[turn])
        return list(build_trees(self.dialogue, knowledge, self.task, asked=self.asked, losses=losses)), losses


@pytest.fixture(scope="module")
def task_of(tiny_tokenizer) -> Callable[..., Task]:
    """A function from a tokenizer, a wording and numbers to a task."""
    made: dict[object, PieceTokenizer] = {}

    def make(kind: str = "embedded", chat: bool = False, wording=BRIEF, **changes) -> Task:
        if (kind, chat, wording.hash) not in made:
            made[kind, chat, wording.hash] = PieceTokenizer(tiny_tokenizer(kind), EMORYNLP, wording, chat=chat)
        tokens = made[kind, chat, wording.hash]
        usual = Task(wording, tokens, EMORYNLP, "window", 6, 512, biography_tokens=64, fact_tokens=64, recent_count=3)
        return replace(usual, **changes)

    return make


@st.composite
def dialogues(draw) -> Dialogue:
    utterances = [
        Utterance(
            id=f"talk-{turn:02d}",
            speakers=tuple(draw(st.lists(names, min_size=1, max_size=2, unique=True))),
            text=" ".join(draw(st.lists(words, min_size=1, max_size=draw(st.sampled_from([4, 4, 4, 40]))))),
            label=draw(st.none() | st.sampled_from(EMORYNLP.names)),
        )
        for turn in range(draw(st.integers(1, 14)))
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
        general={name: draw(facts) for name in ("Ada", "Ben", "Cleo Ray", "{Dee}")},
        nearest=[draw(facts) for _ in turns],
        task=task,
    )


use = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    deadline=None,
)


def first_fitting(budget: int, texts: Sequence[str], task: Task) -> list[str]:
    """The texts that fit into what the ones before them leave of a budget."""
    kept: list[str] = []
    for text in texts:
        if task.tokens.count([Piece(" ".join([*kept, text]))]) <= budget:
            kept.append(text)
    return kept


def shown_text(case: Case, turn: int) -> str:
    """The text of an utterance as prompts show it, found by trying."""
    text, limit = case.dialogue.utterances[turn].text, case.task.max_tokens // 3
    keep = len(text)
    shown = text
    while case.task.tokens.count([Piece(shown)]) > limit:
        keep = keep * 3 // 4
        half = keep // 2
        shown = text[:half] + GAP + text[len(text) - half :]
    return shown


def plain_trunk(case: Case, first: int, turn: int) -> tuple[Piece, ...]:
    """The trunk from one turn up to another, worded anew."""
    task, shown, introduced = case.task, [], set()
    for place in range(first, turn + 1):
        utterance = case.dialogue.utterances[place]
        for name in utterance.speakers:
            if name not in introduced and task.biography_tokens:
                known = " ".join(first_fitting(task.biography_tokens, case.general[name], task))
                template = "introduction" if known else "unknown"
                fields = {"biography": known} if known else {}
                shown += task.wording.pieces(template, speaker=name, **fields)
            introduced.add(name)
        shown += task.wording.pieces("utterance", speaker=utterance.speaker, text=shown_text(case, place))
    return (*task.tokens.opening, *task.wording.pieces("instruction", labels=", ".join(EMORYNLP)), *shown)


def plain_prompt(case: Case, first: int, turn: int, emotion: str) -> tuple[Piece, ...]:
    """The whole prompt for a turn, seeing the dialogue from `first` on, all recent emotions being `emotion`."""
    task, utterance = case.task, case.dialogue.utterances[turn]
    same = [t for t in range(turn) if set(case.dialogue.utterances[t].speakers) & set(utterance.speakers)]
    told = [
        task.wording.text("recent_item", label=emotion, turns="1 turn" if turn - t == 1 else f"{turn - t} turns")
        for t in sorted(same, reverse=True)[: task.recent_count]
    ]
    known = first_fitting(task.fact_tokens, case.nearest[turn], task) if task.fact_tokens else []
    asked = {"speaker": utterance.speaker, "text": shown_text(case, turn), "labels": ", ".join(EMORYNLP)}
    return (
        *plain_trunk(case, first, turn),
        *(piece for fact in known for piece in task.wording.pieces("fact", speaker=utterance.speaker, fact=fact)),
        *(task.wording.pieces("recent", speaker=utterance.speaker, recent=", ".join(told)) if told else ()),
        *task.wording.pieces("question", **asked),
        *task.tokens.closing,
    )


def fits(case: Case, first: int, turn: int) -> bool:
    """Whether the prompt fits with any emotion told and any answer given."""
    tokens = case.task.tokens
    longest = max(len(tokens.ids(plain_prompt(case, first, turn, emotion))) for emotion in EMORYNLP)
    return longest + max(map(len, tokens.answers.values())) <= case.task.max_tokens


def first_that_fits(case: Case, wanted: int, turn: int) -> int | None:
    return next((first for first in range(wanted, turn + 1) if fits(case, first, turn)), None)


def plan_windows(case: Case) -> list[tuple[int, list[int]]] | None:
    """The first turn and the asked turns of every tree, or None where a prompt does not fit."""
    starts = [first_that_fits(case, max(0, turn - case.task.window + 1), turn) for turn in case.asked]
    return None if None in starts else [(first or 0, [turn]) for first, turn in zip(starts, case.asked, strict=True)]


def plan_segments(case: Case) -> list[tuple[int, list[int]]] | None:
    plan: list[tuple[int, list[int]]] = []
    for turn in case.asked:
        if plan and fits(case, plan[-1][0], turn):
            plan[-1][1].append(turn)
        else:
            wanted = max(0, turn - case.task.window + 1) if plan else 0
            first = first_that_fits(case, wanted, turn)
            if first is None:
                return None
            plan.append((first, [turn]))
    return plan


def check(case: Case, plan: list[tuple[int, list[int]]] | None, wanted: Callable[[int], int]) -> None:
    """Check the trees against the plan: all of their prompts, what is cut, and what is counted."""
    if plan is None:
        with pytest.raises(DataError, match=r"tokens without any history; `prompts.max_tokens` is"):
            case.build()
        return
    trees, losses = case.build()
    assert [(tree.dialogue, tree.segment) for tree in trees] == [("talk", place) for place in range(len(plan))]
    assert [[branch.turn for branch in tree.branches] for tree in trees] == [turns for _, turns in plan]
    for tree, (first, turns) in zip(trees, plan, strict=True):
        assert tree.trunk == plain_trunk(case, first, turns[-1])
        for branch in tree.branches:
            utterance = case.dialogue.utterances[branch.turn]
            assert (branch.utterance, branch.label) == (utterance.id, utterance.label)
            assert branch.cut == (first > wanted(branch.turn))
            for emotion in EMORYNLP:
                prompt = unroll(tree, branch, dict.fromkeys(range(20), emotion), case.task.wording)
                assert prompt == plain_prompt(case, first, branch.turn, emotion)
                longest = len(case.task.tokens.ids(prompt)) + max(map(len, case.task.tokens.answers.values()))
                assert longest <= case.task.max_tokens
    assert losses[OLDEST] == sum(first > wanted(turn) for first, turns in plan for turn in turns)
    texts = [utterance.text for utterance in case.dialogue.utterances]
    assert losses[MIDDLE] == sum(case.task.tokens.count([Piece(t)]) > case.task.max_tokens // 3 for t in texts)


@use
@given(st.data())
def test_a_window_shows_the_last_utterances_or_as_many_of_them_as_fit(task_of, data):
    case = data.draw(cases(task_of, "window"))

    check(case, plan_windows(case), lambda turn: max(0, turn - case.task.window + 1))


@use
@given(st.data())
def test_segments_show_all_earlier_utterances_or_as_many_as_fit_and_repeat_a_window(task_of, data):
    case = data.draw(cases(task_of, "full"))

    check(case, plan_segments(case), lambda turn: 0)


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


def talk(*texts: str, speakers: Sequence[str] = ("Ada", "Ben")) -> Dialogue:
    return Dialogue(
        "talk",
        tuple(
            Utterance(f"talk-{turn:02d}", (speakers[turn % len(speakers)],), text, "mad", f"talk.jsonl:{turn + 1}")
            for turn, text in enumerate(texts)
        ),
    )


def build(dialogue: Dialogue, task: Task, losses: Counter[str] | None = None) -> list[PromptTree]:
    knowledge = Knowledge(
        general=lambda name: ["Ada is mostly mad."] if name == "Ada" else [],
        nearest=lambda turn: [f"fact of turn {turn}"],
    )
    turns = range(len(dialogue.utterances))
    return list(build_trees(dialogue, knowledge, task, asked=turns, losses=Counter() if losses is None else losses))


def test_a_small_conversation_reads_as_it_should(task_of):
    trees = build(talk("Hello?", "Who is there?", "Me!"), task_of(window=3, recent_count=1))

    prompt = unroll(trees[2], trees[2].branches[0], {0: "scared", 1: "sad"}, BRIEF)
    assert read_aloud(prompt) == (
        "[CLS]emotions: joyful, mad, peaceful, neutral, sad, powerful, scared."
        " [Ada is mostly mad.] Ada: Hello? [Ben is new] Ben: Who is there? Ada: Me!"
        " fact of turn 2 Ada was scared 2 turns ago. Ada says: Me! and feels"
    )


def test_speakers_of_one_utterance_are_introduced_each_and_share_their_recent_turns(task_of):
    both = Utterance("talk-02", ("Ada", "Cleo"), "We both!", None)
    dialogue = Dialogue("talk", (*talk("One.", "Two.").utterances, both))
    (tree,) = build(dialogue, task_of(history="full"))

    assert "[Cleo is new] Ada and Cleo: We both!" in read_aloud(tree.trunk)
    assert tree.branches[2].recent == (0,)
    assert read_aloud(recent_emotions(tree.branches[2], {0: "sad"}, BRIEF)) == " Ada and Cleo was sad 2 turns ago."


def test_a_long_utterance_loses_its_middle_everywhere_and_is_counted(task_of):
    losses: Counter[str] = Counter()
    text = "Listen. " + "la " * 200 + "And so we left."
    task = task_of(max_tokens=150, biography_tokens=0, fact_tokens=0, window=1)
    ((tree,)) = build(talk(text), task, losses)

    start, gap, end = read_aloud(tree.trunk).partition(" Ada: ")[2].partition(GAP)
    assert gap and text.startswith(start) and text.endswith(end) and start.startswith("Listen.")
    assert 25 < task.tokens.count([Piece(start + gap + end)]) <= 50
    assert f"{start}{gap}{end} and feels" in read_aloud(tree.branches[0].question)
    assert losses[MIDDLE] == 1 and losses[OLDEST] == 0


@pytest.mark.parametrize("budget", [1, 9, 12])
def test_a_tiny_budget_ends_in_an_error_however_long_the_utterance(task_of, budget):
    with pytest.raises(DataError, match="without any history"):
        build(talk("☃ la " * 50), task_of(max_tokens=budget, biography_tokens=0, fact_tokens=0))


@pytest.mark.parametrize("history", ["window", "full"])
def test_a_budget_that_holds_no_utterance_is_named_with_the_remedy(task_of, history):
    task = task_of(history=history, max_tokens=40)
    needed = len(task.tokens.ids(unroll_one(build(talk("Hello?", "You?"), replace(task, max_tokens=512))))) + 2

    message = (
        f"talk.jsonl:1: the prompt for utterance 'talk-00' needs {needed} tokens without any history; "
        "`prompts.max_tokens` is 40. Raise it, or lower `prompts.biography_tokens` or `prompts.fact_tokens`."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        build(talk("Hello?", "You?"), task)


def unroll_one(trees: list[PromptTree]) -> tuple[Piece, ...]:
    return unroll(trees[0], trees[0].branches[0], {}, BRIEF)


@pytest.mark.parametrize(("history", "max_tokens"), [("window", 200), ("full", 200), ("full", 1000)])
def test_twice_the_turns_cost_about_twice_as_much(task_of, history, max_tokens, monkeypatch: pytest.MonkeyPatch):
    task = task_of(history=history, max_tokens=max_tokens)
    counted = 0
    count = task.tokens.count

    def count_and_note(pieces: Sequence[Piece]) -> int:
        nonlocal counted
        counted += len(pieces)
        return count(pieces)

    monkeypatch.setattr(task.tokens, "count", count_and_note)
    costs = []
    for turns in (500, 1000):
        counted = 0
        build(talk(*(f"This is what I say in turn {turn}." for turn in range(turns))), task)
        costs.append(counted)

    assert 1.8 < costs[1] / costs[0] < 2.2
