"""Label sets: the closed, ordered list of emotions of a corpus."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from .errors import DataError


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Emotions in a fixed order; a label is its lower-case name, its index the position in this order."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ValueError(f"a label set needs at least two different labels, found {list(self.names)}")
        if any(not name or name != name.strip().lower() for name in self.names):
            raise ValueError(f"labels are lower-case names without blanks around them, found {list(self.names)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, label: object) -> bool:
        return label in self.names

    @property
    def neutral(self) -> str | None:
        """The label that stands for no emotion, where the set has one."""
        return next((name for name in self.names if name in ("neutral", "no emotion")), None)

    def index(self, label: str) -> int:
        return self.names.index(label)

    def parse(self, text: str, source: str) -> str:
        """Return the label that `text` names, whatever its case. Raises DataError naming `source` and the labels."""
        label = text.strip().lower()
        if label in self.names:
            return label
        near = get_close_matches(label, self.names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{source}: unknown label {text!r}; expected one of {', '.join(self.names)}.{hint}")


EMORYNLP = LabelSet(("joyful", "mad", "peaceful", "neutral", "sad", "powerful", "scared"))
MELD = LabelSet(("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"))
DAILYDIALOG = LabelSet(("no emotion", "anger", "disgust", "fear", "happiness", "sadness", "surprise"))
IEMOCAP = LabelSet(("happy", "sad", "neutral", "angry", "excited", "frustrated"))
IEMOCAP_FOUR = LabelSet(("happy", "sad", "neutral", "angry"))
