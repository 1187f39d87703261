"""Facts: what a profile is made of, each with its text and where it came from."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.dialogue import SPLITS
from ..data.errors import DataError
from ..data.files import read_json_lines, write_json_lines

FACT_KINDS = ("base_rate", "transition", "example")


@dataclass(frozen=True, slots=True)
class Fact:
    """A short sentence about one speaker, and where it came from.

    `speaker` is the global speaker id. `general` facts stand in the trunk of the prompt tree, the others are retrieved
    for an utterance. `split`, `dialogues` and `utterances` (ids) say what the fact draws on. `query` is the text
    whose embedding finds the fact; empty means `text`.
    """

    id: str
    speaker: int
    kind: str
    text: str
    general: bool
    split: str
    dialogues: tuple[str, ...]
    utterances: tuple[str, ...]
    query: str = ""

    def __post_init__(self) -> None:
        assert self.dialogues, f"fact {self.id!r} draws on no dialogue: nothing could leave it out"

    @property
    def search_text(self) -> str:
        """The text to embed: `query`, or `text` where there is none."""
        return self.query or self.text

    def to_record(self) -> dict[str, Any]:
        """Return the fact as a JSON object, a line of facts.jsonl."""
        return asdict(self) | {"dialogues": list(self.dialogues), "utterances": list(self.utterances)}

    @classmethod
    def from_record(cls, record: Any, source: str) -> "Fact":
        """Return the fact that `to_record` wrote. Raises DataError naming `source`, the field, and what it expects."""
        if not isinstance(record, dict):
            raise DataError(f"{source}: a fact is a JSON object, found {record!r:.80}. {_REMEDY}")
        if unknown := sorted(set(record) - set(_FIELDS)):
            raise DataError(f"{source}: a fact has no field {unknown[0]!r}; expected {', '.join(_FIELDS)}. {_REMEDY}")
        values: dict[str, Any] = {"query": ""} | record
        for name, (expected, is_right) in _FIELDS.items():
            if name not in values or not is_right(values[name]):
                found = f"{values[name]!r:.80}" if name in values else "nothing"
                raise DataError(f"{source}: the fact's {name!r} holds {found}; expected {expected}. {_REMEDY}")
        values |= {name: tuple(values[name]) for name in ("dialogues", "utterances")}
        return cls(**values)


def write_facts(path: Path, facts: Iterable[Fact]) -> int:
    """Write one fact a line, in the order given. Returns the number of facts."""
    return write_json_lines(path, (fact.to_record() for fact in facts))


def read_facts(path: Path) -> list[Fact]:
    """Read the facts of a file, in its order. Raises DataError with file and line of a broken record or a second id."""
    facts: dict[str, Fact] = {}
    for number, record in read_json_lines(path):
        fact = Fact.from_record(record, source=f"{path}:{number}")
        if fact.id in facts:
            raise DataError(f"{path}:{number}: a second fact with the id {fact.id!r}; ids are unique. {_REMEDY}")
        facts[fact.id] = fact
    return list(facts.values())


def refuse_split(facts: Iterable[Fact], split: str) -> None:
    """Raise DataError naming a fact that draws on `split`, where there is one."""
    drawn = [fact for fact in facts if fact.split == split]
    if drawn:
        fact = min(drawn, key=lambda fact: fact.id)
        raise DataError(
            f"the profile store holds facts ({len(drawn)}) from the split {split!r}, which is being worked on; "
            f"the first is {fact.id!r} (speaker {fact.speaker}, dialogue {fact.dialogues[0]!r}). "
            "Expected facts from other splits only. Run the profiles stage on training dialogues."
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_id_list(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)


_REMEDY = "Run the profiles stage again, or mend the line."
_FIELDS = {
    "id": ("a text that is not blank", _is_text),
    # `type is`, because True is an int in Python.
    "speaker": ("a whole number from 0", lambda value: type(value) is int and value >= 0),
    "kind": (f"one of {', '.join(FACT_KINDS)}", lambda value: value in FACT_KINDS),
    "text": ("a text that is not blank", _is_text),
    "general": ("true or false", lambda value: isinstance(value, bool)),
    "split": (f"one of {', '.join(SPLITS)}", lambda value: value in SPLITS),
    # A fact without a dialogue could not be left out of that dialogue's own prompts.
    "dialogues": ("a list of at least one dialogue id", lambda value: _is_id_list(value) and len(value) > 0),
    "utterances": ("a list of utterance ids", _is_id_list),
    "query": ("a text", lambda value: isinstance(value, str)),
}
