"""What is asked, in conversations made by hand: how it reads, what goes where room is short, and what it costs."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from erckit.data.dialogue import Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.prompts.tasks import GAP, Knowledge, Task, build_trees
from erckit.prompts.tree import PromptTree, read_aloud, recent_emotions, unroll
from erckit.prompts.wording import Piece, read_wording

BRIEF, INSTRUCT = read_wording("brief"), read_wording("instruct")
OLDEST, MIDDLE = "prompts without their oldest turns", "utterances without their middle"


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
        general=lambda name: ["Ada is mostly mad."] if name == "Ada" else None,
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
        " [fact of turn 2] before: scared 2 turns ago. Ada says: Me! and feels"
    )


def test_speakers_of_one_utterance_are_introduced_each_and_share_their_recent_turns(task_of):
    both = Utterance("talk-02", ("Ada", "Cleo"), "We both!", None)
    dialogue = Dialogue("talk", (*talk("One.", "Two.").utterances, both))
    (tree,) = build(dialogue, task_of(history="full"))

    assert "[Cleo is new] Ada and Cleo: We both!" in read_aloud(tree.trunk)
    assert tree.branches[2].recent == (0,)
    assert read_aloud(recent_emotions(tree.branches[2], {0: "sad"}, BRIEF)) == " before: sad 2 turns ago."


def test_segments_of_a_long_conversation_repeat_a_window_less_the_asked_turn(task_of):
    trees = build(talk(*(f"I say {turn}." for turn in range(60))), task_of(history="full", window=4, max_tokens=200))

    assert len(trees) > 2
    assert [branch.turn for tree in trees for branch in tree.branches] == list(range(60))
    for tree in trees[1:]:
        said = re.findall(r"I say (\d+)\.", read_aloud(tree.trunk))
        assert int(said[0]) == tree.branches[0].turn - 3


def test_a_long_utterance_loses_its_middle_everywhere_and_is_counted(task_of):
    losses: Counter[str] = Counter()
    text = "Listen. " + "la " * 200 + "And so we left."
    task = task_of(max_tokens=150, biography_tokens=0, fact_tokens=0, window=1)
    (tree,) = build(talk(text), task, losses)

    start, gap, end = read_aloud(tree.trunk).partition(" Ada: ")[2].partition(GAP)
    assert gap and text.startswith(start) and text.endswith(end) and start.startswith("Listen.")
    assert 25 < task.tokens.count([Piece(start + gap + end)]) <= 50
    assert losses[MIDDLE] == 1 and losses[OLDEST] == 0

    repeating = task_of(wording=INSTRUCT, max_tokens=300, biography_tokens=0, fact_tokens=0, window=1)
    (tree,) = build(talk(text), repeating)
    asked = read_aloud(tree.branches[0].question).partition('saying "')[2].partition('"')[0]
    assert GAP in asked and asked in read_aloud(tree.trunk)


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
    for turns in (300, 600):
        counted = 0
        build(talk(*(f"This is what I say in turn {turn}." for turn in range(turns))), task)
        costs.append(counted)

    assert 1.8 < costs[1] / costs[0] < 2.2
