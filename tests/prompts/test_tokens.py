"""From pieces to ids: prompts begin and chat as the tokenizer's own, and answers can be told apart."""

import copy
import re
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from erckit.data.errors import DataError
from erckit.data.labels import EMORYNLP, LabelSet
from erckit.prompts.tokens import CHAT_OPTIONS, PieceTokenizer, find_choices
from erckit.prompts.tree import read_aloud
from erckit.prompts.wording import Piece, read_wording
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BRIEF, INSTRUCT = read_wording("brief"), read_wording("instruct")
CHATS = ["qwen2", "llama", "phi3", "gemma"]
KINDS = [("embedded", False), *((kind, chat) for kind in CHATS for chat in (False, True))]
kinds = st.sampled_from(KINDS)
use = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def tokens_of(tiny_tokenizer) -> Callable[..., PieceTokenizer]:
    """A function from a kind of tokenizer and whether it chats to its PieceTokenizer."""
    made: dict[Any, PieceTokenizer] = {}

    def make(kind: str, chat: bool = False) -> PieceTokenizer:
        if (kind, chat) not in made:
            made[kind, chat] = PieceTokenizer(tiny_tokenizer(kind), EMORYNLP, INSTRUCT, chat=chat)
        return made[kind, chat]

    return make


def decode(tokens: PieceTokenizer, ids: Any) -> str:
    return tokens.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def harmless_prompt() -> tuple[Piece, ...]:
    return (
        *INSTRUCT.pieces("instruction", labels="joyful, mad"),
        *INSTRUCT.pieces("introduction", speaker="Tom Bellweather", biography="Tom is mostly mad."),
        *INSTRUCT.pieces("utterance", speaker="Tom Bellweather", text="It went in up to the handle... é!"),
        *INSTRUCT.pieces("recent", speaker="Tom Bellweather", recent="1 turn ago mad"),
        *INSTRUCT.pieces("question", speaker="Tom Bellweather", text="It went in.", labels="joyful, mad"),
    )


@pytest.mark.parametrize("kind", CHATS)
def test_a_chat_prompt_is_what_the_template_makes_of_it(tokens_of, kind):
    tokens, prompt = tokens_of(kind, True), harmless_prompt()
    message = [{"role": "user", "content": read_aloud(prompt)}]

    expected = tokens.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **CHAT_OPTIONS)
    whole = [*tokens.opening, *prompt, *tokens.closing]
    assert read_aloud(whole) == expected
    assert decode(tokens, tokens.ids(whole)) == expected


@pytest.mark.parametrize("kind", CHATS)
def test_the_ids_of_a_chat_prompt_of_one_piece_are_those_of_the_template(tokens_of, kind):
    tokens = tokens_of(kind, True)
    message = [{"role": "user", "content": "How does Tom feel?"}]

    expected = tokens.tokenizer.apply_chat_template(message, tokenize=True, add_generation_prompt=True, **CHAT_OPTIONS)[
        "input_ids"
    ]
    assert tokens.ids([*tokens.opening, Piece("How does Tom feel?"), *tokens.closing]) == expected


@pytest.mark.parametrize("kind", ["embedded", *CHATS])
def test_a_base_prompt_begins_as_the_tokenizer_begins_a_text(tokens_of, kind):
    tokens = tokens_of(kind)
    whole = tokens.tokenizer("Hello")["input_ids"]
    text = tokens.tokenizer("Hello", add_special_tokens=False)["input_ids"]

    assert tokens.ids(tokens.opening) == whole[: whole.index(text[0])]
    assert tokens.closing == ()


def test_a_template_that_prints_the_date_makes_the_same_prompt_every_day(tokens_of):
    assert "Today Date: 26 Jul 2024" in read_aloud(tokens_of("llama", True).opening)


def make(tokenizer: Any, labels: tuple[str, ...], *, chat: bool = False) -> PieceTokenizer:
    return PieceTokenizer(tokenizer, LabelSet(labels), BRIEF, chat=chat)


def begins(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return b[: len(a)] == a


words = ["sad", "sadness", "joy", "joyful", "joyfully", "mad", "fear", "fearful", "not sad", "very", "very mad"]


@use
@given(kinds, st.lists(st.sampled_from(words), min_size=2, max_size=6, unique=True).map(tuple))
def test_no_answer_begins_another_and_an_ending_comes_only_where_it_must(tiny_tokenizer, kind, labels):
    tokenizer, chat = tiny_tokenizer(kind[0]), kind[1]
    answers = make(tokenizer, labels, chat=chat).answers

    assert list(answers) == list(labels)
    assert not any(begins(a, b) for a, b in permutations(answers.values(), 2))
    # In running text a word stands with its blank; so it does where a tokenizer begins every text with one.
    plain = {
        label: tuple(tokenizer(label if chat or kind[0] == "phi3" else f" {label}", add_special_tokens=False).input_ids)
        for label in labels
    }
    ends = {answer[len(plain[label]) :] for label, answer in answers.items() if begins(plain[label], answer)}
    assert len(ends) == 1
    (ending,) = ends
    assert bool(ending) == any(begins(a, b) for a, b in permutations(plain.values(), 2))
    if ending:
        last = {"qwen2": "<|im_end|>", "llama": "<|eot_id|>", "phi3": "<|end|>" if chat else "<|endoftext|>"}
        last["gemma"] = "<end_of_turn>" if chat else "<eos>"
        assert ending[0] == tokenizer.convert_tokens_to_ids(last.get(kind[0], "[SEP]"))


token_lists = st.lists(st.lists(st.integers(0, 3), max_size=4).map(tuple), min_size=1, max_size=8)


@given(token_lists)
def test_choices_are_where_brute_force_finds_answers_parting(answers):
    beginnings = {answer[:depth] for answer in answers for depth in range(len(answer) + 1)}
    expected = {}
    for prefix in beginnings:
        following = {a[len(prefix)] for a in answers if begins(prefix, a) and len(a) > len(prefix)}
        if len(following) > 1:
            expected[prefix] = tuple(sorted(following))

    assert find_choices(answers) == expected


@pytest.mark.parametrize(("kind", "chat"), KINDS)
def test_an_answer_decodes_to_its_label_also_after_a_prompt(tokens_of, kind, chat):
    tokens = tokens_of(kind, chat)
    prompt = [*tokens.opening, *harmless_prompt(), *tokens.closing]
    for label in EMORYNLP:
        answer = tokens.answers[label]
        assert tokens.tokenizer.decode(answer, skip_special_tokens=True).strip() == label
        assert decode(tokens, [*tokens.ids(prompt), *answer]).endswith(label)


def test_a_label_that_the_tokenizer_cannot_write_is_refused(tiny_tokenizer):
    tokenizer = tiny_tokenizer("embedded")
    ids = tuple(tokenizer(" blasé", add_special_tokens=False)["input_ids"])
    message = (
        f"supervised tokens {ids} decode to 'blase', expected the answer 'blasé'. The tokenizer does not write this "
        "label faithfully; change `answer.txt` of the wording, or use another model."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        make(tokenizer, ("blasé", "sad"))


def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused(tiny_tokenizer):
    tokenizer = tiny_tokenizer("embedded")
    unknown = (tokenizer.unk_token_id, tokenizer.sep_token_id)

    message = (
        f"the tokenizer gives {{'😀': {unknown}, '😁': {unknown}}}: some answers are alike or begin with one another, "
        "so that their likelihoods cannot be compared. Change `answer.txt` of the wording, or use another model."
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        make(tokenizer, ("😀", "😁"))


def test_a_tokenizer_without_an_end_is_refused(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2"))
    tokenizer.eos_token = None

    message = "the tokenizer has neither an end-of-sequence nor a separator token; set one of them."
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        make(tokenizer, ("mad", "sad"))


def test_chat_without_a_template_is_refused(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2"))
    tokenizer.chat_template = None

    message = "the tokenizer has no chat template; set `prompts.chat: false` for a base model."
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        make(tokenizer, ("mad", "sad"), chat=True)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}",
        "hello",
    ],
)
def test_a_template_that_changes_the_text_is_refused(tiny_tokenizer, template):
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2"))
    tokenizer.chat_template = template

    message = "the tokenizer's chat template does not show the user's text once and as it is; it cannot be used."
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        make(tokenizer, ("mad", "sad"), chat=True)
