"""The prompt tree: one dialogue, or a segment of one, as a trunk and its branches.

The trunk is the instruction, then the utterances in order, each speaker introduced right before their first one. For
every utterance that is asked about, a branch leaves the trunk right after it: retrieved facts, recent emotions, the
question and the answer. A tree is data only. Recent emotions are kept as the turns they come from, because what was
felt there is gold in training and the model's own answer in prediction.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..data.errors import DataError
from .wording import Piece, Wording


@dataclass(frozen=True, slots=True)
class Branch:
    """What is asked about one utterance.

    `after` is the number of trunk pieces that the branch sees. `recent` holds the earlier turns of the same speaker
    whose emotions may be told, the latest first. `label` is the gold answer, None where there is none.
    """

    utterance: str
    turn: int
    speaker: str
    after: int
    facts: tuple[Piece, ...]
    recent: tuple[int, ...]
    question: tuple[Piece, ...]
    label: str | None


@dataclass(frozen=True, slots=True)
class PromptTree:
    """A rendered dialogue or segment; `spans` tells where in the trunk the pieces of each utterance begin and end."""

    dialogue: str
    segment: int
    trunk: tuple[Piece, ...]
    spans: tuple[tuple[int, int], ...]
    branches: tuple[Branch, ...]


def unroll(tree: PromptTree, branch: Branch, emotions: Mapping[int, str], wording: Wording) -> tuple[Piece, ...]:
    """Return one branch as a whole prompt, up to where the answer begins: the reference for every other rendering.

    `emotions` maps a turn of the dialogue to the emotion to tell of it; recent turns that it lacks are left out.
    """
    return (
        *tree.trunk[: branch.after],
        *branch.facts,
        *recent_emotions(branch, emotions, wording),
        *branch.question,
    )


def recent_emotions(branch: Branch, emotions: Mapping[int, str], wording: Wording) -> tuple[Piece, ...]:
    """Word the speaker's recent emotions, the latest first, each with how long ago it was; or nothing."""
    told = [
        wording.text("recent_item", label=emotions[turn], turns=_count_turns(branch.turn - turn))
        for turn in branch.recent
        if turn in emotions
    ]
    return wording.pieces("recent", speaker=branch.speaker, recent=", ".join(told)) if told else ()


def read_aloud(prompt: Iterable[Piece]) -> str:
    """Return a rendered prompt as a person reads it."""
    return "".join(piece.text for piece in prompt)


def gold_emotions(trees: Iterable[PromptTree]) -> dict[str, dict[int, str]]:
    """Return the gold emotion of every labelled turn by dialogue: what training may tell, and an oracle elsewhere."""
    gold: dict[str, dict[int, str]] = defaultdict(dict)
    for tree in trees:
        gold[tree.dialogue] |= {branch.turn: branch.label for branch in tree.branches if branch.label is not None}
    return gold


def _count_turns(distance: int) -> str:
    return "1 turn" if distance == 1 else f"{distance} turns"


def to_record(tree: PromptTree, wording: Wording) -> dict[str, Any]:
    """Return the tree as a JSON object; `from_record` reads it back equal."""
    return {
        "dialogue": tree.dialogue,
        "segment": tree.segment,
        "wording": wording.hash,
        "trunk": [_piece_to_json(piece) for piece in tree.trunk],
        "spans": tree.spans,
        "branches": [
            {
                "utterance": branch.utterance,
                "turn": branch.turn,
                "speaker": branch.speaker,
                "after": branch.after,
                "facts": [_piece_to_json(piece) for piece in branch.facts],
                "recent": list(branch.recent),
                "question": [_piece_to_json(piece) for piece in branch.question],
                "label": branch.label,
            }
            for branch in tree.branches
        ],
    }


def from_record(record: Any, wording: Wording, source: str) -> PromptTree:
    """Read a tree back. Raises DataError naming `source` for a broken record or one of another wording."""
    try:
        if record["wording"] != wording.hash:
            raise DataError(
                f"{source}: made with the wording {record['wording'][:12]}, expected {wording.hash[:12]}. "
                "Run the prompts stage again."
            )
        branches = tuple(
            Branch(
                utterance=branch["utterance"],
                turn=branch["turn"],
                speaker=branch["speaker"],
                after=branch["after"],
                facts=tuple(_piece_from_json(piece) for piece in branch["facts"]),
                recent=tuple(branch["recent"]),
                question=tuple(_piece_from_json(piece) for piece in branch["question"]),
                label=branch["label"],
            )
            for branch in record["branches"]
        )
        trunk = tuple(_piece_from_json(piece) for piece in record["trunk"])
        spans = tuple((start, stop) for start, stop in record["spans"])
        return PromptTree(record["dialogue"], record["segment"], trunk, spans, branches)
    except (KeyError, TypeError) as error:
        raise DataError(f"{source}: not a prompt tree ({error!r}). Run the prompts stage again.") from error


def _piece_to_json(piece: Piece) -> Any:
    return {"control": piece.text} if piece.control else piece.text


def _piece_from_json(value: Any) -> Piece:
    return Piece(value) if isinstance(value, str) else Piece(value["control"], control=True)
