"""Reading what earlier stages wrote."""

from collections.abc import Iterator

from ..data.dialogue import Dialogue
from ..data.erckit_jsonl import read_dialogues
from ..data.files import read_json, read_json_lines
from ..data.labels import LabelSet
from ..data.speakers import SpeakerRegistry
from ..prompts.tree import PromptTree, from_record
from ..prompts.wording import Wording, read_wording
from .run import Run


def load_labels(run: Run) -> LabelSet:
    return LabelSet(tuple(read_json(run.path("ingest", "labels.json"))))


def load_dialogues(run: Run, split: str) -> list[Dialogue]:
    return read_dialogues(run.path("ingest", f"dialogues.{split}.jsonl"), load_labels(run))


def load_speakers(run: Run) -> SpeakerRegistry:
    return SpeakerRegistry.read(run.path("ingest", "speakers.json"))


def load_wording(run: Run) -> Wording:
    """The wording that the run's prompts were made with: the copy beside them."""
    return read_wording(str(run.path("prompts", "wording")))


def load_trees(run: Run, split: str, wording: Wording) -> Iterator[PromptTree]:
    path = run.path("prompts", f"{split}.jsonl")
    for number, record in read_json_lines(path):
        yield from_record(record, wording, f"{path}:{number}")
