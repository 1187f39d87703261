"""Reading what earlier stages wrote."""

from collections.abc import Iterator

from ..data import erckit_jsonl
from ..data.dialogue import Dialogue
from ..data.errors import DataError
from ..data.files import read_json, read_json_lines
from ..data.labels import LabelSet
from ..data.speakers import SpeakerRegistry
from ..prompts.tree import PromptTree, from_record
from ..prompts.wording import Wording, read_wording
from .config import Config
from .manifest import find_change, read_manifest
from .run import Run, settings_of

ANSWERING = {
    "ingest": ("labels.json", "speakers.json"),
    "profiles": ("store.json",),  # by which the store itself checks its other files, as far as it uses them
    "prompts": ("wording/",),
    "train": ("adapter/",),
}
"""By stage, the outputs that decide an answer outside the stages."""


def load_labels(run: Run) -> LabelSet:
    return LabelSet(tuple(read_json(run.path("ingest", "labels.json"))))


def load_dialogues(run: Run, split: str) -> list[Dialogue]:
    return list(stream_dialogues(run, split))


def stream_dialogues(run: Run, split: str) -> Iterator[Dialogue]:
    """Yield the dialogues of a split, one in memory at a time."""
    return erckit_jsonl.stream_dialogues(run.path("ingest", f"dialogues.{split}.jsonl"), load_labels(run))


def load_corpus_name(run: Run) -> str:
    return read_json(run.path("ingest", "corpus.json"))["name"]


def count_dialogues(run: Run, split: str) -> int:
    return read_json(run.path("ingest", "corpus.json"))["counts"][split]["dialogues"]


def load_speakers(run: Run) -> SpeakerRegistry:
    return SpeakerRegistry.read(run.path("ingest", "speakers.json"))


def load_wording(run: Run) -> Wording:
    """The wording that the run's prompts were made with: the copy beside them."""
    return read_wording(str(run.path("prompts", "wording")))


def load_trees(run: Run, split: str, wording: Wording) -> Iterator[PromptTree]:
    path = run.path("prompts", f"{split}.jsonl")
    for number, record in read_json_lines(path):
        yield from_record(record, wording, f"{path}:{number}")


def require_unchanged(config: Config, run: Run) -> None:
    """Raise DataError where the run was made with other settings, or what answers depend on was changed since."""
    for stage, outputs in ANSWERING.items():
        if stage == "train" and config.predict.adapter:
            continue  # an adapter from elsewhere has its own card
        manifest = read_manifest(run.path(stage))
        for section, settings in settings_of(stage, config).items():
            for key, value in settings.items():
                made_with = manifest["config"][section].get(key)
                if made_with != value:
                    raise DataError(
                        f"{run.folder / 'config.yaml'}: {section}.{key} is {value!r}, and {stage} was made with "
                        f"{made_with!r}. Use `erckit run` with the configuration that you want."
                    )
        for output in outputs:
            require_output(run, stage, output)


def require_output(run: Run, stage: str, output: str) -> None:
    """Raise DataError where a file that a stage wrote, or one whose path begins so, was changed since or is missing."""
    folder = run.path(stage)
    if change := find_change(folder, read_manifest(folder), output):
        raise DataError(f"{folder}: {change} since {stage} wrote it. Use `erckit run`, which makes it anew.")
