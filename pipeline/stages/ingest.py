"""Ingest: a corpus of any known form becomes dialogues, speakers and labels in erckit's own form."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from ...data.corpus import read_corpus
from ...data.dialogue import SPLITS, Corpus
from ...data.erckit_jsonl import write_dialogues
from ...data.errors import DataError
from ...data.files import hash_file, write_json
from ...data.forms import FORMS, find_files
from ...data.mixture import FEELINGS, measure_overlap, mix_corpora, read_feelings
from ...data.speakers import ALIAS_TABLES, find_aliases, identify_speakers, read_aliases
from ..config import Config
from ..config import Data as DataConfig
from ..console import say
from ..run import Run

SAMPLE = "sample"


def run(config: Config, run: Run) -> str:
    corpus = read_corpus(find_corpus(config.data.path), config.data.form)
    check_dev_labels(corpus)
    others = [read_corpus(find_corpus(path)) for path in config.data.also]
    if others:
        table = FEELINGS if config.data.feelings == "auto" else Path(config.data.feelings)
        named = [(other, find_aliases(other.name)) for other in others]
        corpus = mix_corpora(corpus, named, read_feelings(table), drop_overlap=config.data.drop_overlap)
    corpus = replace(corpus, differences=(*corpus.differences, *map(str, measure_overlap(corpus, others))))
    corpus, speakers = identify_speakers(corpus, _choose_aliases(config.data, [corpus.name, *(o.name for o in others)]))
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
    """The shipped tables decide too, where the user names none."""
    tables = sorted(ALIAS_TABLES.glob("*.yaml")) if config.data.aliases == "auto" else []
    tables += [FEELINGS] if config.data.also and config.data.feelings == "auto" else []
    return " ".join(f"{table.name} {hash_file(table)}" for table in tables)


def check_dev_labels(corpus: Corpus) -> None:
    """Raise DataError if dev, by which checkpoints and baselines are chosen, has no labelled utterance."""
    if not _is_labelled(corpus, "dev"):
        raise DataError(
            f"{corpus.name}: dev has no labelled utterance, and checkpoints and baselines are chosen on dev. Label "
            "some of it, or move labelled dialogues there from train."
        )


def find_corpus(path: str) -> Path:
    """Return the folder of a corpus: the bundled one, in the working folder, or in the folder $ERCKIT_DATA names."""
    if path == SAMPLE:
        return Path(str(files("erckit.data") / "sample"))
    root = os.environ.get("ERCKIT_DATA")
    candidates = [Path(path), *([Path(root) / path] if root else [])]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise DataError(
        f"no corpus folder {path!r}; looked for {' and '.join(str(c.absolute()) for c in candidates)}. Name "
        "the folder that holds the corpus files (data.path), or set ERCKIT_DATA to the folder around it."
    )


def corpus_files(config: Config) -> list[Path]:
    """The files that the stage reads: all that belong to a known form, label sets and the user's alias table."""
    folders = list(map(find_corpus, [config.data.path, *config.data.also]))
    patterns = {pattern for form in FORMS.values() for pattern in form.files} | {"labels.json"}
    tables = []
    for key, table in (("aliases", config.data.aliases), ("feelings", config.data.feelings)):
        if table != "auto":
            tables.append(Path(table))
            if not tables[-1].is_file():
                raise DataError(f"{tables[-1].absolute()}: no such table. Set data.{key} to the table, or remove it.")
    found = {path for folder in folders for pattern in patterns for path in find_files(folder, pattern)}
    return [*sorted(found), *tables]


def _choose_aliases(data: DataConfig, corpora: Sequence[str]) -> dict[str, str]:
    """Return the user's table, or the shipped ones: the corpus's own, and where several are mixed that of all."""
    if data.aliases != "auto":
        return read_aliases(Path(data.aliases))
    own, shared = find_aliases(corpora[0]), find_aliases("+".join(sorted(corpora))) if len(corpora) > 1 else {}
    return {alias: shared.get(name, name) for alias, name in own.items()} | shared


def _is_labelled(corpus: Corpus, split: str) -> bool:
    return any(utterance.label is not None for dialogue in corpus.dialogues[split] for utterance in dialogue.utterances)


def _describe_repairs(repairs: Mapping[str, int]) -> list[str]:
    return [f"{count:,} repaired: {kind}." for kind, count in repairs.items()]


def _describe_test_labels(corpus: Corpus) -> list[str]:
    if _is_labelled(corpus, "test"):
        return []
    return ["test has no labels: it can be predicted, not evaluated; use --to predict."]
