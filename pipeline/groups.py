"""Groups of utterances that are scored apart: by who speaks, by what they felt before, by how late it is said."""

from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import TypeAlias

from ..data.dialogue import Dialogue
from ..data.speakers import SpeakerRegistry

Key: TypeAlias = tuple[str, str]
"""An utterance, by its dialogue and its id."""
Groups: TypeAlias = Mapping[str, Mapping[str, set[Key]]]
"""The utterances of each group, by what decides it and by its name."""

TURNS = {"1": 1, "2 to 5": 5, "6 to 10": 10, "11 to 20": 20, "21 on": inf}
"""The bins of turns, counted from 1, each with its last."""
TITLES = {
    "speaker": {"seen": "speakers that training has", "unseen": "speakers that training has not"},
    "emotion": {
        "first": "first emotion of a speaker",
        "inertia": "inertia: the same emotion again",
        "shift": "shift: another emotion than before",
    },
    "turn": {name: f"{'turn' if name == '1' else 'turns'} {name}" for name in TURNS},
}


def group_utterances(dialogues: Iterable[Dialogue], speakers: SpeakerRegistry | None) -> Groups:
    """Return the groups that TITLES names; without `speakers`, who knows training, those of speakers are empty.

    An utterance is "seen" if all who say it speak in training. A labelled one is an "inertia" or a "shift" if it has
    the same or another gold label than the latest labelled one before, in the dialogue, of anybody who says it, and
    "first" if there is none.
    """
    groups: dict[str, dict[str, set[Key]]] = {kind: {name: set() for name in names} for kind, names in TITLES.items()}
    for dialogue in dialogues:
        for turn, utterance in enumerate(dialogue.utterances, start=1):
            key = (dialogue.id, utterance.id)
            groups["turn"][next(name for name, last in TURNS.items() if turn <= last)].add(key)
            if speakers:
                seen = all(speakers[name].seen for name in utterance.speakers)
                groups["speaker"]["seen" if seen else "unseen"].add(key)
        for id, name in _follow_emotions(dialogue):
            groups["emotion"][name].add((dialogue.id, id))
    return groups


def _follow_emotions(dialogue: Dialogue) -> Iterator[tuple[str, str]]:
    """Yield the id of every labelled utterance with "first", "inertia" or "shift"."""
    felt: dict[str, tuple[int, str]] = {}  # by speaker, the latest labelled turn and its label
    for turn, utterance in enumerate(dialogue.utterances):
        if utterance.label is None:
            continue
        before = [felt[name] for name in utterance.speakers if name in felt]
        if before:
            yield utterance.id, "inertia" if max(before)[1] == utterance.label else "shift"
        else:
            yield utterance.id, "first"
        felt |= dict.fromkeys(utterance.speakers, (turn, utterance.label))
