"""The frozen types that every stage speaks: utterance, dialogue, corpus."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .errors import DataError
from .labels import LabelSet

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One contribution to a dialogue.

    `speakers` holds every person who says it (most often one), by canonical name. `label` is None where nobody
    annotated it. `source` is "file:line" for error messages and takes no part in comparisons.
    """

    id: str
    speakers: tuple[str, ...]
    text: str
    label: str | None = None
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.speakers or not all(name.strip() for name in self.speakers):
            raise DataError(f"{self.source or self.id}: utterance {self.id!r} has no speaker. Name who says it.")

    @property
    def speaker(self) -> str:
        """The speakers as a prompt names them: "Ada", "Ada and Ben", "Ada, Ben and Cleo"."""
        *others, last = self.speakers
        return f"{', '.join(others)} and {last}" if others else last


@dataclass(frozen=True, slots=True)
class Dialogue:
    """An ordered conversation; an utterance's turn is its position, from 0.

    `session` names what it is a part of, such as an episode, and `begins` where in there, in any unit.
    """

    id: str
    utterances: tuple[Utterance, ...]
    session: str | None = None
    begins: int = 0
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not self.utterances:
            raise DataError(f"{self.source or self.id}: dialogue {self.id!r} has no utterances. Remove it or fill it.")
        ids = [utterance.id for utterance in self.utterances]
        if len(set(ids)) < len(ids):
            twice = next(id for id in ids if ids.count(id) > 1)
            raise DataError(
                f"{self.source or self.id}: dialogue {self.id!r} has two utterances with the id {twice!r}. "
                "Ids are unique within a dialogue."
            )


def by_session(dialogues: Iterable[Dialogue]) -> list[list[Dialogue]]:
    """Gather dialogues by their sessions, in order of first appearance, each in its own order; one of none is alone."""
    sessions: dict[str | tuple[str], list[Dialogue]] = {}
    for dialogue in dialogues:
        sessions.setdefault((dialogue.id,) if dialogue.session is None else dialogue.session, []).append(dialogue)
    return [sorted(session, key=lambda dialogue: dialogue.begins) for session in sessions.values()]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus as read: its label set and its dialogues by split.

    `form` names the file format. `repairs` counts what was mended on the way in (by kind), and `differences` says, a
    sentence each, where the corpus departs from the published split.
    """

    name: str
    form: str
    labels: LabelSet
    dialogues: Mapping[str, tuple[Dialogue, ...]]
    repairs: Mapping[str, int] = field(default_factory=dict)
    differences: tuple[str, ...] = ()
