"""What an epoch is made of: every example once, put together as asked, drawn again the same from seed and epoch."""

from types import SimpleNamespace

import numpy as np
import pytest
from erckit.data.errors import DataError
from erckit.data.labels import EMORYNLP
from erckit.pipeline.epochs import Batches, TrainingPrompts
from erckit.prompts.packing import TreeTokens, unpack
from erckit.prompts.tree import gold_emotions, unroll

TURNS = 10
MIXED = Batches(step=16, together=4, row_tokens=400)


@pytest.fixture(scope="module")
def talks(load_tiny, talk, make_trees):
    parts = load_tiny("llama")
    generator = np.random.default_rng(4)
    trees = make_trees(parts, [talk(generator, f"d{place}", TURNS) for place in range(30)], history="full")
    return SimpleNamespace(parts=parts, trees=trees, gold=gold_emotions(trees))


@pytest.fixture(scope="module")
def prepare(talks):
    def make(batches=MIXED, noise=0.0, seed=3, trees=talks.trees) -> TrainingPrompts:
        parts = talks.parts
        return TrainingPrompts(
            trees,
            parts.labels,
            parts.tokens,
            parts.wording,
            both_ways=False,
            batches=batches,
            noise=noise,
            seed=seed,
        )

    return make


def prompts_of(row) -> list[tuple[int, ...]]:
    return [tuple(unpack(part, branch)) for part in row.parts for branch in range(len(part.asked))]


@pytest.mark.parametrize("history", ["window", "full"])
@pytest.mark.parametrize("together", [0, 1, 4])
def test_an_epoch_asks_the_unrolled_prompt_of_every_example_once(talks, prepare, make_trees, talk, history, together):
    parts = talks.parts
    generator = np.random.default_rng(5)
    trees = make_trees(parts, [talk(generator, f"d{place}", 7) for place in range(6)], history=history)
    gold = gold_emotions(trees)
    prompts = prepare(Batches(5, together, 300), seed=1, trees=trees)
    expected = sorted(
        (tuple(parts.tokens.ids(unroll(tree, branch, gold[tree.dialogue], parts.wording))), branch.label)
        for tree in trees
        for branch in tree.branches
    )
    for epoch in range(2):
        prompts.start_epoch(epoch, None)
        rows = [prompts.row(place) for place in range(len(prompts))]
        asked = [pair for row in rows for pair in zip(prompts_of(row), row.labels, strict=True)]
        assert sorted(asked) == expected
        assert all(a == parts.tokens.answers[label] for r in rows for a, label in zip(r.answers, r.labels, strict=True))
    assert prompts.counts == {label: [found for _, found in expected].count(label) for label in EMORYNLP}


def test_steps_hold_as_many_examples_as_asked_of_many_dialogues(prepare):
    prompts = prepare()
    for epoch in range(3):
        prompts.start_epoch(epoch, None)
        rows = [prompts.row(place) for place in range(len(prompts))]
        steps = [rows[start : start + prompts.rows_per_step] for start in range(0, len(rows), prompts.rows_per_step)]
        sizes = [sum(len(row.labels) for row in step) for step in steps]
        assert abs(np.mean(sizes) - 16) < 1 and max(sizes) - min(sizes) <= 8
        assert all(len(part.asked) <= 4 for row in rows for part in row.parts)
        for step in steps:
            costs = [sum(len(part.ids) for part in row.parts) for row in step]
            largest = max(len(part.ids) for row in step for part in row.parts)
            assert max(costs) <= 400 + largest and max(costs) - min(costs) <= largest


def test_an_epoch_is_drawn_from_seed_and_number_alone(prepare):
    def draw(seed, *epochs):
        prompts = prepare(noise=0.5, seed=seed)
        for epoch in epochs:  # what was drawn before does not matter
            prompts.start_epoch(epoch, None)
        return tuple(prompt for place in range(len(prompts)) for prompt in prompts_of(prompts.row(place)))

    assert draw(3, 2) == draw(3, 1, 0, 2)
    assert len({draw(seed, epoch) for seed in (3, 4) for epoch in (0, 1)}) == 4


def test_processes_share_the_rows_of_a_step(prepare):
    prompts = prepare(Batches(step=16, together=4, row_tokens=100_000, processes=2))
    assert prompts.rows_per_step == 2
    with pytest.raises(DataError, match="an optimiser step visits 2 dialogues, which 3 processes cannot share. Raise"):
        prepare(Batches(step=20, together=0, row_tokens=400, processes=3))


def test_a_packing_that_asks_something_else_is_noticed(prepare, monkeypatch):
    prompts = prepare()
    prompts.prove()
    right = TreeTokens.branch
    monkeypatch.setattr(TreeTokens, "branch", lambda tree, place, told: right(tree, place, told)[1:])
    with pytest.raises(DataError, match=r"^d\d+-\d: packed, the answer follows on '.*', expected '.*emotions: .* says"):
        prompts.prove()


# Recent emotions.


@pytest.fixture
def told(talks, prepare, monkeypatch):
    """A function from noise and epoch to the (gold, told) emotions of every recent turn, in the order of examples."""

    def collect(noise, epoch=0, confusion=None, seed=3):
        pairs = {}
        right = TreeTokens.branch

        def spy(tree, place, emotions):
            branch = tree.tree.branches[place]
            gold = talks.gold[tree.tree.dialogue]
            pairs[branch.utterance] = [(gold[turn], emotions[turn]) for turn in branch.recent]
            return right(tree, place, emotions)

        prompts = prepare(noise=noise, seed=seed)
        prompts.start_epoch(epoch, confusion)
        with monkeypatch.context() as patch:
            patch.setattr(TreeTokens, "branch", spy)
            for place in range(len(prompts)):
                prompts.row(place)
        return [pair for utterance in sorted(pairs) for pair in pairs[utterance]]

    return collect


def test_recent_emotions_are_gold_but_for_the_share_of_noise(told):
    assert all(gold == shown for gold, shown in told(noise=0.0))
    assert all(gold != shown for gold, shown in told(noise=1.0))

    pairs = told(noise=0.3)
    wrong = sum(gold != shown for gold, shown in pairs)
    deviation = (len(pairs) * 0.3 * 0.7) ** 0.5
    assert len(pairs) > 400 and abs(wrong - 0.3 * len(pairs)) < 4 * deviation


def test_the_noise_is_drawn_anew_each_epoch_and_again_the_same(told):
    assert told(0.5, epoch=1) == told(0.5, epoch=1)
    assert len({tuple(told(0.5, epoch=epoch, seed=seed)) for epoch in (0, 1) for seed in (3, 4)}) == 4


def test_errors_are_those_that_the_model_makes(told):
    after = {label: EMORYNLP.names[place - 1] for place, label in enumerate(EMORYNLP)}
    confusion = [[10_000 * (after[gold] == label) for label in EMORYNLP] for gold in EMORYNLP]
    pairs = told(noise=1.0, confusion=confusion)
    assert np.mean([shown == after[gold] for gold, shown in pairs]) > 0.99
