"""A packed part holds its unrolled prompts, token for token and position for position, and nothing else."""

import numpy as np
from erckit.data.labels import EMORYNLP
from erckit.prompts.packing import TreeTokens, lay_out, unpack
from erckit.prompts.tokens import PieceTokenizer
from erckit.prompts.tree import Branch, PromptTree, unroll
from erckit.prompts.wording import Piece, read_wording
from hypothesis import given
from hypothesis import strategies as st

tokens = st.integers(3, 99)
leaves = st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=3, unique=True)


@st.composite
def drafts(draw):
    """A trunk, how much of it is known, and branches in order that see what is known at least."""
    trunk = draw(st.lists(tokens, min_size=2, max_size=30))
    known = draw(st.integers(0, len(trunk) - 1))
    places = draw(st.lists(st.integers(max(1, known), len(trunk)), min_size=1, max_size=5))
    branch = st.lists(tokens, min_size=1, max_size=6)
    return np.array(trunk), known, [(after, draw(branch), draw(leaves)) for after in sorted(places)]


def visible(part, place: int) -> list[int]:
    """The keys that a token sees, those of the known trunk first, by the definition of `seen`."""
    return [key for start, stop in part.seen[place].reshape(3, 2) for key in range(start, stop)]


@given(drafts())
def test_every_token_sees_exactly_what_stands_before_it_in_its_unrolled_prompt(draft):
    trunk, known, branches = draft
    part = lay_out(trunk, branches, known=known)
    ids = [*trunk[:known], *part.ids]
    positions = [*range(known), *part.positions]
    place = part.trunk
    for after, branch, hanging in branches:
        stem = trunk[:after].tolist()
        for prompt, added in [(stem, branch), *(([*stem, *branch], leaf) for leaf in hanging)]:
            for depth in range(len(added)):
                seen = visible(part, place)
                assert [ids[key] for key in seen] == [*prompt, *added[: depth + 1]]
                assert [positions[key] for key in seen] == list(range(len(seen)))
                place += 1
    assert place == len(part.ids)
    assert part.trunk == branches[-1][0] - known
    for place in range(part.trunk):
        assert visible(part, place) == list(range(known + place + 1))


@given(drafts(), st.sets(st.integers(1, 29)))
def test_both_ways_within_an_utterance_and_a_branch_and_causal_between_them(draft, cuts):
    trunk, _, branches = draft
    # Branches leave where utterances end, and only whole utterances are known.
    ends = sorted({*(cut for cut in cuts if cut < len(trunk)), *(after for after, _, _ in branches)})
    known = max((end for end in ends if end < branches[0][0]), default=0)
    part = lay_out(trunk, branches, known=known, blocks=np.array(ends))
    causal = lay_out(trunk, branches, known=known)
    assert np.array_equal(part.ids, causal.ids) and np.array_equal(part.positions, causal.positions)
    for place in range(part.trunk):
        assert visible(part, place) == list(range(next(end for end in ends if end > known + place)))
    place = part.trunk
    for _, branch, hanging in branches:
        last = visible(causal, place + len(branch) - 1)
        for _ in branch:
            assert visible(part, place) == last
            place += 1
        for _ in [token for leaf in hanging for token in leaf]:
            assert visible(part, place) == visible(causal, place)
            place += 1


@given(drafts())
def test_every_decision_falls_after_its_beginning_of_an_answer(draft):
    trunk, _, branches = draft
    part = lay_out(trunk, branches)
    assert [set(decided) for decided in part.asked] == [{(), *hanging} for _, _, hanging in branches]
    for place, (after, branch, hanging) in enumerate(branches):
        for leaf in [(), *hanging]:
            assert unpack(part, place, leaf) == [*trunk[:after], *branch, *leaf]


def test_a_tree_has_the_tokens_of_its_unrolled_prompts(tiny_tokenizer):
    wording = read_wording("brief")
    tokenizer = PieceTokenizer(tiny_tokenizer("llama"), EMORYNLP, wording, chat=True)
    trunk = (*tokenizer.opening, Piece("emotions."), *wording.pieces("utterance", speaker="Ada", text="No."))
    question = (*wording.pieces("question", speaker="Ada", text="No.", labels="mad, sad"), *tokenizer.closing)
    fact = wording.pieces("fact", speaker="Ada", fact="Ada shouts.")
    first = Branch("d-0", 0, "Ada", len(trunk) - 1, (), (), question, "mad")
    second = Branch("d-1", 1, "Ada", len(trunk), fact, (0,), question, None)
    tree = PromptTree("d", 0, trunk, ((len(trunk) - 3, len(trunk)),), (first, second))
    packed = TreeTokens(tree, tokenizer, wording, both_ways=False)
    for place, branch in enumerate(tree.branches):
        for emotions in ({}, {0: "sad"}):
            ids = [*packed.trunk[: packed.after(place)], *packed.branch(place, emotions)]
            assert ids == tokenizer.ids(unroll(tree, branch, emotions, wording))
