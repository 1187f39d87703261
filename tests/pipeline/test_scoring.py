"""Scores equal brute force, one unpadded forward pass at a time, whatever they are computed together with."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from erckit.data.dialogue import Dialogue
from erckit.data.labels import EMORYNLP, MELD, LabelSet
from erckit.pipeline.scoring import answer_trees
from erckit.prompts.tree import gold_emotions, unroll

# Labels that share first tokens, labels that begin with one another, and labels of a single token.
NESTED = LabelSet(("sad", "sadness", "joy", "joyful"))
LETTERS = LabelSet(("a", "b", "m", "s"))
CASES = [
    ("qwen2", EMORYNLP, False),
    ("qwen2", LETTERS, True),
    ("llama", MELD, False),
    ("llama", NESTED, False),
    ("phi3", NESTED, True),
    ("embedded", EMORYNLP, False),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{len(case[1])}{'-chat' * case[2]}")
def parts(request, load_tiny):
    kind, labels, chat = request.param
    found = load_tiny(kind, labels, chat)
    found.reference = copy.deepcopy(found.model).double()
    found.reference.set_attn_implementation("sdpa")
    return found


@pytest.fixture(scope="module")
def prompts(parts, talk, make_trees):
    """Token ids of prompts from 1 to 5 turns, in no order of length."""
    trees = make_trees(parts, [talk(np.random.default_rng(1), "d", 6, parts.labels)], window=5)
    found = [
        parts.tokens.ids(
            unroll(tree, branch, {turn: parts.labels.names[turn % 3] for turn in branch.recent}, parts.wording)
        )
        for tree in trees
        for branch in tree.branches
    ]
    chosen = [found[place] for place in (4, 0, 5, 2, 1, 3)[: 3 if parts.config.name == "embedded" else 6]]
    assert len({len(prompt) for prompt in chosen}) > 2
    return chosen


def score_by_force(parts, prompt: list[int]) -> list[float]:
    """The log-likelihood of every label in float64: at each token, softmax over the tokens that continue an answer."""
    answers = list(parts.tokens.answers.values())
    scores = []
    for answer in answers:
        with torch.no_grad():
            logits = parts.reference(torch.tensor([[*prompt, *answer]])).logits[0]
        score = 0.0
        for depth, token in enumerate(answer):
            allowed = sorted({other[depth] for other in answers if other[:depth] == answer[:depth]})
            log_p = logits[len(prompt) + depth - 1, allowed].log_softmax(0)
            score += log_p[allowed.index(token)].item()
        scores.append(score)
    return scores


def test_the_cases_hold_answers_of_every_form(load_tiny):
    nested, letters, emotions = (
        list(load_tiny(*case).tokens.answers.values())
        for case in (("llama", NESTED), ("qwen2", LETTERS, True), ("qwen2", EMORYNLP))
    )
    assert {len(ids) for ids in letters} == {1}
    assert len({len(ids) for ids in nested}) > 1 and len({ids[:2] for ids in nested}) < len(nested)
    assert len({ids[0] for ids in emotions}) < len({ids[:2] for ids in emotions}) == len(emotions)


def test_scores_equal_brute_force(parts, prompts, score_prompts):
    expected = torch.tensor([score_by_force(parts, prompt) for prompt in prompts])
    answers = list(parts.tokens.answers.values())
    with torch.no_grad():
        scores = score_prompts(parts, prompts)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0, check_dtype=False)
        torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(len(prompts)), atol=1e-5, rtol=0)
        for first in range(len(answers)):  # every prompt another answer, as in training
            places = [(first + row) % len(answers) for row in range(len(prompts))]
            found = score_prompts(parts, prompts, [[answers[place]] for place in places])
            torch.testing.assert_close(found[:, 0], scores[range(len(prompts)), places], atol=1e-5, rtol=0)


def test_what_else_is_in_the_row_does_not_matter(parts, prompts, score_prompts):
    with torch.no_grad():
        together = score_prompts(parts, prompts)
        for place, prompt in enumerate(prompts):
            torch.testing.assert_close(score_prompts(parts, [prompt])[0], together[place], atol=1e-5, rtol=0)


# A conversation answered turn by turn.


@pytest.fixture(scope="module")
def tiny(load_tiny):
    found = load_tiny("qwen2")
    found.reference = copy.deepcopy(found.model).double()
    found.reference.set_attn_implementation("sdpa")
    return found


@pytest.fixture(scope="module")
def dialogues(talk):
    generator = np.random.default_rng(2)
    return [talk(generator, f"d{place}", turns) for place, turns in enumerate((5, 1, 8, 3))]


def answer_one_by_one(parts, trees, gold=None):
    """(dialogue, turn, label, log-likelihoods, prompt) of every branch, one dialogue and one prompt at a time."""
    answers = []
    emotions = {}
    for tree in trees:
        for branch in tree.branches:
            told = emotions.setdefault(tree.dialogue, {}) if gold is None else gold[tree.dialogue]
            prompt = unroll(tree, branch, told, parts.wording)
            scores = score_by_force(parts, parts.tokens.ids(prompt))
            label = parts.labels.names[int(np.argmax(scores))]
            answers.append((tree.dialogue, branch.turn, label, scores, prompt))
            if gold is None:
                told[branch.turn] = label
    return answers


@pytest.mark.parametrize("history", ["window", "full"])
@pytest.mark.parametrize("told", ["predicted", "gold"])
def test_answers_equal_a_naive_loop_whatever_is_computed_together(tiny, dialogues, make_trees, history, told):
    trees = make_trees(tiny, dialogues, history=history)
    gold = gold_emotions(trees) if told == "gold" else None
    expected = answer_one_by_one(tiny, trees, gold)
    assert len({label for _, _, label, _, _ in expected}) > 2 and any("before" in p.text for p in expected[4][4])

    for sizes in ({"conversations": n, "row_tokens": tokens} for n in (1, 2, 3, 64) for tokens in (1, 150, 10_000)):
        found = list(
            answer_trees(tiny.model, tiny.tokens, tiny.wording, iter(trees), both_ways=False, gold=gold, **sizes)
        )
        assert [(a.dialogue, a.branch.turn, a.label, a.prompt) for a in found] == [
            (dialogue, turn, label, prompt) for dialogue, turn, label, _, prompt in expected
        ]
        np.testing.assert_allclose(
            [a.probabilities for a in found], [np.exp(scores) for _, _, _, scores, _ in expected], atol=1e-5
        )


def test_gold_history_tells_gold_and_predicted_history_never_does(tiny, dialogues, make_trees):
    """Relabelling the corpus changes every oracle's prompt that tells an emotion, and nothing else."""

    def relabel(dialogue: Dialogue) -> Dialogue:
        changed = [replace(u, label={"mad": "sad"}.get(str(u.label), "mad")) for u in dialogue.utterances]
        return replace(dialogue, utterances=tuple(changed))

    def ask(trees, gold):
        answers = answer_trees(
            tiny.model, tiny.tokens, tiny.wording, trees, both_ways=False, conversations=4, row_tokens=500, gold=gold
        )
        return [(answer.prompt, answer.probabilities) for answer in answers]

    before, after = (make_trees(tiny, talks) for talks in (dialogues, [relabel(d) for d in dialogues]))
    assert ask(before, None) == ask(after, None)
    tells = [bool(branch.recent) for tree in before for branch in tree.branches]
    oracle = zip(ask(before, gold_emotions(before)), ask(after, gold_emotions(after)), strict=True)
    assert [b != a for b, a in oracle] == tells


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("history", ["window", "full"])
def test_later_turns_never_change_earlier_answers(tiny, dialogues, make_trees, talk, history, both_ways):
    dialogue = dialogues[2]

    def ask(talk):
        trees = make_trees(tiny, [talk], history=history)
        answers = answer_trees(
            tiny.model, tiny.tokens, tiny.wording, trees, both_ways=both_ways, conversations=2, row_tokens=500
        )
        return list(answers)

    answers = ask(dialogue)
    for turn in range(len(dialogue.utterances) - 1):
        future = talk(np.random.default_rng(turn), "other", len(dialogue.utterances)).utterances[turn + 1 :]
        changed = replace(dialogue, utterances=(*dialogue.utterances[: turn + 1], *future))
        found = ask(changed)[: turn + 1]
        assert [answer.prompt for answer in found] == [answer.prompt for answer in answers[: turn + 1]]
        before, after = ([a.probabilities for a in some] for some in (answers[: turn + 1], found))
        np.testing.assert_allclose(after, before, atol=1e-6)  # rows of other lengths round otherwise
