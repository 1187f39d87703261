"""From pieces to token ids, and the proof that what is supervised is the answer."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..data.errors import DataError
from ..data.labels import LabelSet
from .wording import Piece, Wording

SENTINEL = "\u2063erckit\u2063"
# Chat templates that print today's date would make a prompt that nobody can make again.
CHAT_OPTIONS = {"date_string": "26 Jul 2024", "enable_thinking": False}
# A character that no word merges with.
GUARD = "\u2063"

Choices = dict[tuple[int, ...], tuple[int, ...]]


class PieceTokenizer:
    """Tokenises piece by piece: text of a corpus never merges with what stands around it nor becomes a control token.

    `opening` and `closing` are the control pieces that begin a prompt and that stand between question and answer (the
    user's and the assistant's header of a chat model; for a base model its first token, and nothing). `answers` maps
    each label to its token ids, which no other label's ids begin with; `choices` are the places where they part.
    """

    def __init__(self, tokenizer: Any, labels: LabelSet, wording: Wording, *, chat: bool) -> None:
        self.tokenizer = tokenizer
        self.opening, self.closing, ending = _read_chat_template(tokenizer) if chat else _base_pieces(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        self._control = {id for id, token in added if len(token.content.strip()) > 1} - {tokenizer.unk_token_id}
        self._guard, self._guard_size = _find_guard(tokenizer)
        self._ids = lru_cache(maxsize=1 << 16)(self._tokenise)
        # After an assistant's header a text begins; in running text a word goes with its blank.
        words = {label: wording.text("answer", label=label) for label in labels}
        start = " " if self._guard else ""
        answers = {label: self._ids(Piece(start + word.strip() if chat else word)) for label, word in words.items()}
        if _some_begin_others(list(answers.values())):
            answers = {label: (*ids, *self._ids(ending)) for label, ids in answers.items()}
        self.answers = answers
        self.choices = find_choices(list(answers.values()))
        self._refuse_alike()
        for label in labels:
            self._refuse_unfaithful(label)

    def count(self, pieces: Sequence[Piece]) -> int:
        return sum(len(self._ids(piece)) for piece in pieces)

    def ids(self, pieces: Sequence[Piece]) -> list[int]:
        return [token for piece in pieces for token in self._ids(piece)]

    def _tokenise(self, piece: Piece) -> tuple[int, ...]:
        guarded, split = self._guard + piece.text, not piece.control
        encoded = self.tokenizer(guarded, add_special_tokens=False, split_special_tokens=split)["input_ids"]
        ids = tuple(encoded[self._guard_size :])
        if piece.control or self._control.isdisjoint(ids) or len(piece.text) == 1:
            return ids
        # Tokenizers keep some control tokens whole that they do not call special (<think>): halves of them are text.
        middle = len(piece.text) // 2
        return self._tokenise(Piece(piece.text[:middle])) + self._tokenise(Piece(piece.text[middle:]))

    def _refuse_alike(self) -> None:
        if not any(self.answers.values()) or _some_begin_others(list(self.answers.values())):
            raise DataError(
                f"the tokenizer gives {self.answers}: some answers are alike or begin with one another, so that their "
                "likelihoods cannot be compared. Change `answer.txt` of the wording, or use another model."
            )

    def _refuse_unfaithful(self, label: str) -> None:
        decoded = self.tokenizer.decode(self.answers[label], skip_special_tokens=True).strip()
        if decoded.lower() != label:
            raise DataError(
                f"supervised tokens {self.answers[label]} decode to {decoded!r}, expected the answer {label!r}. The "
                "tokenizer does not write this label faithfully; change `answer.txt` of the wording, or use another "
                "model."
            )


def find_choices(answers: Sequence[tuple[int, ...]]) -> Choices:
    """Return every beginning after which answers part, with the tokens that may follow, in ascending order.

    Between these places an answer goes on in one way only: nothing is decided there, and nothing has to be computed.
    """
    following: dict[tuple[int, ...], set[int]] = {}
    for answer in answers:
        for depth, token in enumerate(answer):
            following.setdefault(answer[:depth], set()).add(token)
    return {prefix: tuple(sorted(tokens)) for prefix, tokens in following.items() if len(tokens) > 1}


def _find_guard(tokenizer: Any) -> tuple[str, int]:
    """Return what to put before a piece so that no blank comes there, and its number of tokens, to cut off again.

    Only tokenizers that begin every text with a blank need it, as SentencePiece does: else each piece would have one.
    """
    guard, *probes = (tokenizer(GUARD + text, add_special_tokens=False)["input_ids"] for text in ("", "a", " a", "\n"))
    needed = tokenizer.tokenize("a", add_special_tokens=False)[0].startswith("▁")
    stays_apart = all(probe[: len(guard)] == guard for probe in probes)
    return (GUARD, len(guard)) if needed and stays_apart else ("", 0)


def _some_begin_others(answers: Sequence[tuple[int, ...]]) -> bool:
    ordered = sorted(answers)  # what begins with x follows x directly, or after others that begin with x
    return any(b[: len(a)] == a for a, b in zip(ordered, ordered[1:], strict=False))


def _base_pieces(tokenizer: Any) -> tuple[tuple[Piece, ...], tuple[Piece, ...], Piece]:
    first = tokenizer("")["input_ids"][:1]
    opening = next(
        (token for token in (tokenizer.bos_token, tokenizer.cls_token) if _id_of(tokenizer, token) == first), None
    )
    ending = tokenizer.eos_token or tokenizer.sep_token
    if ending is None:
        raise DataError("the tokenizer has neither an end-of-sequence nor a separator token; set one of them.")
    return (Piece(opening, control=True),) if opening else (), (), Piece(ending, control=True)


def _id_of(tokenizer: Any, token: str | None) -> list[int] | None:
    return None if token is None else [tokenizer.convert_tokens_to_ids(token)]


def _read_chat_template(tokenizer: Any) -> tuple[tuple[Piece, ...], tuple[Piece, ...], Piece]:
    """Return what the tokenizer's template writes before a user's text, between it and the answer, and after."""
    if tokenizer.chat_template is None:
        raise DataError("the tokenizer has no chat template; set `prompts.chat: false` for a base model.")
    question = [{"role": "user", "content": SENTINEL}]
    answered = [*question, {"role": "assistant", "content": "answer"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True, **CHAT_OPTIONS)
    before, found, between = text.partition(SENTINEL)
    if not found or SENTINEL in between:
        raise DataError(
            "the tokenizer's chat template does not show the user's text once and as it is; it cannot be used."
        )
    whole = tokenizer.apply_chat_template(answered, tokenize=False, **CHAT_OPTIONS)
    after = whole.rpartition("answer")[2] or tokenizer.eos_token
    return (Piece(before, control=True),), (Piece(between, control=True),), Piece(after, control=True)
