"""Profiles: the biographer reads the training dialogues and fills the store with facts about their speakers."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ...data.dialogue import Dialogue
from ...data.files import replace_atomically
from ...retrieval.biographer import StatisticalBiographer
from ...retrieval.encoder import SentenceEncoder
from ...retrieval.store_files import FORMAT, write_store
from ..artefacts import count_dialogues, load_labels, load_speakers, stream_dialogues
from ..config import Config
from ..console import progress
from ..run import Run

VECTORS = "vectors.train.npy"
BLOCK = 1024
"""Utterances that are encoded together, about: whole dialogues are."""


def run(config: Config, run: Run) -> str:
    encoder = SentenceEncoder(config.profiles.encoder)
    dialogues = progress(stream_dialogues(run, "train"), count_dialogues(run, "train"), "train dialogues encoded")
    _save_vectors(run.path("profiles", VECTORS), encode_dialogues(dialogues, encoder), encoder.dimension)
    biographer = build_biographer(config, run, encoder)
    seen = [speaker.name for speaker in load_speakers(run) if speaker.seen]
    facts = [fact for name in progress(seen, len(seen), "biographies") for fact in biographer.write_facts(name)]
    found_by = encoder.encode([fact.search_text for fact in facts])
    write_store(run.path("profiles"), encoder.name, encoder.fingerprint, encoder.dimension, [(facts, found_by)])
    return f"{len(facts):,} facts about {len({fact.speaker for fact in facts})} speakers"


def fingerprint(config: Config) -> str:
    """The encoder's weights decide too, whatever folder they come from, and the form of the store."""
    return f"{SentenceEncoder(config.profiles.encoder).fingerprint} {FORMAT}"


def load_vectors(run: Run, split: str, dialogues: Sequence[Dialogue], encoder: SentenceEncoder) -> np.ndarray:
    """Return a vector for every utterance of a split in order, shape (utterances, dimension)."""
    if split == "train":
        return np.load(run.path("profiles", VECTORS), allow_pickle=False)
    shown = progress(dialogues, len(dialogues), f"{split} dialogues encoded")
    return np.concatenate([vectors for _, vectors in encode_dialogues(shown, encoder)])


def stream_vectors(run: Run, split: str, encoder: SentenceEncoder) -> Iterator[tuple[Dialogue, np.ndarray]]:
    """Yield the dialogues of a split, each with a vector for every utterance, shape (utterances, dimension).

    No more than a block of them is in memory at a time.
    """
    if split != "train":
        yield from encode_dialogues(stream_dialogues(run, split), encoder)
        return
    # Not mapped into memory, where what was read would stay and count.
    with run.path("profiles", VECTORS).open("rb") as file:
        npy.read_magic(file)
        (_, dimension), _, dtype = npy.read_array_header_1_0(file)
        for dialogue in stream_dialogues(run, split):
            count = len(dialogue.utterances)
            yield dialogue, np.fromfile(file, dtype, count * dimension).reshape(count, dimension)


def encode_dialogues(dialogues: Iterable[Dialogue], encoder: SentenceEncoder) -> Iterator[tuple[Dialogue, np.ndarray]]:
    """Yield each dialogue with a vector for every utterance, shape (utterances, dimension)."""
    block, size = list[Dialogue](), 0
    for dialogue in dialogues:
        block.append(dialogue)
        size += len(dialogue.utterances)
        if size >= BLOCK:
            yield from _encode_block(block, encoder)
            block, size = [], 0
    yield from _encode_block(block, encoder)


def build_biographer(config: Config, run: Run, encoder: SentenceEncoder) -> StatisticalBiographer:
    """Return the biographer of the training dialogues, which reads their vectors from the profiles stage."""
    labels = load_labels(run)
    prototypes = encoder.encode([f"I feel {label}." for label in labels])
    read = progress(stream_vectors(run, "train", encoder), count_dialogues(run, "train"), "train dialogues read")
    return StatisticalBiographer(read, prototypes, labels, load_speakers(run), config.profiles.examples_per_emotion)


def _encode_block(dialogues: Sequence[Dialogue], encoder: SentenceEncoder) -> Iterator[tuple[Dialogue, np.ndarray]]:
    vectors = encoder.encode([utterance.text for dialogue in dialogues for utterance in dialogue.utterances])
    start = 0
    for dialogue in dialogues:
        end = start + len(dialogue.utterances)
        yield dialogue, vectors[start:end]
        start = end


def _save_vectors(path: Path, encoded: Iterable[tuple[Dialogue, np.ndarray]], dimension: int) -> None:
    """Save vectors as NumPy does, one dialogue after the other; prompts and baselines read them again."""
    header = {"descr": npy.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False}
    rows = 0
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        npy.write_array_header_1_0(file, header | {"shape": (rows, dimension)})
        for _, vectors in encoded:
            file.write(vectors.tobytes())
            rows += len(vectors)
        file.seek(0)  # NumPy leaves room in the header for the number of rows to grow
        npy.write_array_header_1_0(file, header | {"shape": (rows, dimension)})
