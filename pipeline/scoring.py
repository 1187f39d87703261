"""Closed-set scoring: every label by the log-likelihood of its answer, and the conversation answered turn by turn."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..prompts.tokens import Choices, PieceTokenizer
from ..prompts.tree import Branch, PromptTree, unroll
from ..prompts.wording import Piece, Wording
from .console import progress

if TYPE_CHECKING:
    import torch

# Conversations that advance together: enough to fill batches, few enough to keep memory flat.
TOGETHER = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model answers for one utterance: a probability for each label, in order, and the prompt it was asked."""

    dialogue: str
    branch: Branch
    label: str
    probabilities: tuple[float, ...]
    prompt: tuple[Piece, ...]


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: Any = None) -> dict[str, "torch.Tensor"]:
    """Return input_ids, attention_mask and position_ids, each of shape (rows, longest row), padded on the left."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def answer_log_likelihoods(
    model: Any, inputs: Mapping[str, "torch.Tensor"], answers: Sequence[Sequence[int]], choices: Choices
) -> "torch.Tensor":
    """Return log p(answer | what stands before it, it is an answer), shape (rows,), in float32.

    Each row of `inputs` ends with its own answer. At every token the model chooses among those that continue an answer
    (`prompts.tokens.find_choices`): the log-likelihood under constrained decoding, which sums to 1 over the label set
    and favours no label for its number of tokens. Where labels are one token, it is the cross-entropy of their logits.
    Logits are computed where answers stand and nowhere else.
    """
    import torch

    longest = max(map(len, answers))
    logits = model(**inputs, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1].float()
    rows, places, targets, allowed = [], [], [], []
    for row, answer in enumerate(answers):
        for depth, token in enumerate(answer):
            if tuple(answer[:depth]) in choices:
                rows.append(row)
                places.append(longest - len(answer) + depth)
                targets.append(choices[tuple(answer[:depth])].index(token))
                allowed.append(choices[tuple(answer[:depth])])
    widest = max(map(len, allowed))
    tokens = torch.tensor([[*choice, *[-1] * (widest - len(choice))] for choice in allowed], device=logits.device)
    chosen = logits[rows, places].gather(1, tokens.clamp(min=0)).masked_fill(tokens < 0, float("-inf"))
    log_p = chosen.log_softmax(dim=1).gather(1, torch.tensor(targets, device=logits.device).unsqueeze(1)).squeeze(1)
    return torch.zeros(len(answers), device=logits.device).index_add(0, torch.tensor(rows, device=logits.device), log_p)


def score_labels(
    model: Any, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], choices: Choices, pad: int
) -> "torch.Tensor":
    """Return log p(answer | prompt, it is an answer) for every prompt and answer, shape (prompts, answers), float32.

    The same quantity as `answer_log_likelihoods`, without gradients, for all answers at once: one forward pass where
    their first tokens differ, and one more for each further place where some of them part.
    """
    import torch

    scores = torch.zeros(len(prompts), len(answers))
    with torch.inference_mode():
        for prefix, allowed in choices.items():
            inputs = pad_left([[*prompt, *prefix] for prompt in prompts], pad, model.device)
            logits = model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
            log_p = logits[:, list(allowed)].log_softmax(dim=1).cpu()
            for place, answer in enumerate(answers):
                if tuple(answer[: len(prefix)]) == prefix:
                    scores[:, place] += log_p[:, allowed.index(answer[len(prefix)])]
    return scores


def answer_trees(
    model: Any,
    tokens: PieceTokenizer,
    wording: Wording,
    trees: Iterable[PromptTree],
    *,
    batch_size: int,
    gold: Mapping[str, Mapping[int, str]] | None = None,
    what: str = "utterances answered",
) -> Iterator[Answer]:
    """Yield the answer for every branch, dialogue by dialogue, in order; the model must be in evaluation mode.

    Recent emotions are the model's own earlier answers: conversations advance together, turn by turn, each answer
    feeding the next prompt of its dialogue. With `gold`, emotions by dialogue and turn, they are told from there.
    """
    dialogues = _group_by_dialogue(trees)
    while group := list(islice(dialogues, TOGETHER)):
        emotions = [dict((gold or {}).get(dialogue[0][0].dialogue, {})) for dialogue in group]
        answers: list[list[Answer]] = [[] for _ in group]
        for wave in progress(_plan_waves(group, batch_size), None, f"batches of {what}"):
            prompts = [unroll(*group[place][turn], emotions[place], wording) for place, turn in wave]
            log_p = score_labels(
                model,
                [tokens.ids(prompt) for prompt in prompts],
                list(tokens.answers.values()),
                tokens.choices,
                tokens.pad,
            )
            for (place, turn), prompt, row in zip(wave, prompts, log_p.exp().tolist(), strict=True):
                tree, branch = group[place][turn]
                label = max(zip(row, tokens.answers, strict=True), key=lambda pair: pair[0])[1]
                answers[place].append(Answer(tree.dialogue, branch, label, tuple(row), prompt))
                if gold is None:
                    emotions[place][branch.turn] = label
        for answered in answers:
            yield from answered


def _group_by_dialogue(trees: Iterable[PromptTree]) -> Iterator[list[tuple[PromptTree, Branch]]]:
    group: list[tuple[PromptTree, Branch]] = []
    for tree in trees:
        if group and group[0][0].dialogue != tree.dialogue:
            yield group
            group = []
        group += [(tree, branch) for branch in tree.branches]
    if group:
        yield group


def _plan_waves(
    group: Sequence[Sequence[tuple[PromptTree, Branch]]], batch_size: int
) -> Iterator[list[tuple[int, int]]]:
    """Yield batches of (place of the dialogue, place of its branch); a dialogue's branches come in order."""
    for turn in range(max(map(len, group))):
        ready = [place for place, branches in enumerate(group) if turn < len(branches)]
        # Prompts of similar length together: less padding.
        ready.sort(key=lambda place: _size(*group[place][turn]))
        for start in range(0, len(ready), batch_size):
            yield [(place, turn) for place in ready[start : start + batch_size]]


def _size(tree: PromptTree, branch: Branch) -> int:
    return sum(len(piece.text) for piece in (*tree.trunk[: branch.after], *branch.facts, *branch.question))
