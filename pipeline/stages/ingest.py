"""Ingest: a corpus of any known form becomes dialogues, speakers and labels in erckit's own form."""

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from ...data.corpus import FORMS, read_corpus
from ...data.dialogue import SPLITS, Corpus
from ...data.erckit_jsonl import write_dialogues
from ...data.errors import DataError
from ...data.files import hash_file, write_json
from ...data.speakers import ALIAS_TABLES, find_aliases, identify_speakers, read_aliases
from ..config import Config
from ..config import Data as DataConfig
from ..console import say
from ..run import Run

SAMPLE = "sample"


def run(config: Config, run: Run) -> str:
    corpus = read_corpus(find_corpus(config.data), config.data.form)
    check_dev_labels(corpus)
    corpus, speakers = identify_speakers(corpus, _choose_aliases(config.data, corpus.name))
    for split in SPLITS:
        write_dialogues(run.path("ingest", f"dialogues.{split}.jsonl"), corpus.dialogues[split])
    speakers.write(run.path("ingest", "speakers.json"))
    write_json(run.path("ingest", "labels.json"), list(corpus.labels))
    counts = {
        split: {"dialogues": len(dialogues), "utterances": sum(len(d.utterances) for d in dialogues)}
        for split, dialogues in corpus.dialogues.items()
    }
    facts = {"name": corpus.name, "form": corpus.form, "counts": counts, "repairs": dict(corpus.repairs)}
    write_json(run.path("ingest", "corpus.json"), facts | {"differences": list(corpus.differences)})
    for note in (*corpus.differences, *_describe_repairs(corpus.repairs), *_describe_test_labels(corpus)):
        say(f"  note: {note}")
    sizes = "/".join(f"{counts[split]['utterances']:,}" for split in SPLITS)
    unseen = sum(not speaker.seen for speaker in speakers)
    return f"{corpus.name} ({corpus.form}), {sizes} utterances, {len(speakers)} speakers, {unseen} of them unseen"


def fingerprint(config: Config) -> str:
    """The shipped alias tables decide too, where the user names none."""
    tables = sorted(ALIAS_TABLES.glob("*.yaml")) if config.data.aliases == "auto" else []
    return " ".join(f"{table.name} {hash_file(table)}" for table in tables)


def check_dev_labels(corpus: Corpus) -> None:
    """Raise DataError if dev, by which checkpoints and baselines are chosen, has no labelled utterance."""
    if not _is_labelled(corpus, "dev"):
        raise DataError(
            f"{corpus.name}: dev has no labelled utterance, and checkpoints and baselines are chosen on dev. Label "
            "some of it, or move labelled dialogues there from train."
        )


def find_corpus(data: DataConfig) -> Path:
    """Return the folder of the corpus: the bundled one, in the working folder, or in the folder $ERCKIT_DATA names."""
    if data.path == SAMPLE:
        return Path(str(files("erckit.data") / "sample"))
    root = os.environ.get("ERCKIT_DATA")
    candidates = [Path(data.path), *([Path(root) / data.path] if root else [])]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise DataError(
        f"no corpus folder {data.path!r}; looked for {' and '.join(str(c.absolute()) for c in candidates)}. Name "
        "the folder that holds the corpus files (data.path), or set ERCKIT_DATA to the folder around it."
    )


def corpus_files(config: Config) -> list[Path]:
    """The files that the stage reads: all that belong to a known form, label sets and the user's alias table."""
    folder = find_corpus(config.data)
    names = {name for form in FORMS.values() for name in form.files} | {"labels.json"}
    tables = [] if config.data.aliases == "auto" else [Path(config.data.aliases)]
    for table in tables:
        if not table.is_file():
            raise DataError(f"{table.absolute()}: no such alias table. Set data.aliases to the table, or remove it.")
    return sorted(path for path in folder.iterdir() if path.name in names) + tables


def _choose_aliases(data: DataConfig, corpus: str) -> dict[str, str]:
    return find_aliases(corpus) if data.aliases == "auto" else read_aliases(Path(data.aliases))


def _is_labelled(corpus: Corpus, split: str) -> bool:
    return any(utterance.label is not None for dialogue in corpus.dialogues[split] for utterance in dialogue.utterances)


def _describe_repairs(repairs: Mapping[str, int]) -> list[str]:
    return [f"{count:,} repaired: {kind}." for kind, count in repairs.items()]


def _describe_test_labels(corpus: Corpus) -> list[str]:
    if _is_labelled(corpus, "test"):
        return []
    return ["test has no labels: it can be predicted, not evaluated; use --to predict."]
