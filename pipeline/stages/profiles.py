"""Profiles: the biographer reads the training dialogues and fills the store with facts about their speakers."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...data.dialogue import Dialogue
from ...data.files import replace_atomically
from ...retrieval.biographer import StatisticalBiographer
from ...retrieval.encoder import SentenceEncoder
from ...retrieval.store import ProfileStore
from ..artefacts import load_dialogues, load_labels, load_speakers
from ..config import Config
from ..console import progress
from ..run import Run

VECTORS = "vectors.train.npy"


def run(config: Config, run: Run) -> str:
    encoder = SentenceEncoder(config.profiles.encoder)
    dialogues = load_dialogues(run, "train")
    vectors = encode_utterances(dialogues, encoder)
    _save_vectors(run.path("profiles", VECTORS), vectors)  # prompts and baselines read them again
    biographer = build_biographer(config, run, encoder, dialogues, vectors)
    seen = [speaker.name for speaker in load_speakers(run) if speaker.seen]
    facts = [fact for name in progress(seen, len(seen), "biographies") for fact in biographer.write_facts(name)]
    store = ProfileStore.empty(encoder.name, encoder.fingerprint, encoder.dimension)
    store.upsert(facts, encoder.encode([fact.search_text for fact in facts]))
    store.save(run.path("profiles"))
    return f"{len(facts):,} facts about {len(store.speakers)} speakers"


def fingerprint(config: Config) -> str:
    """The encoder's weights decide too, whatever folder they come from."""
    return SentenceEncoder(config.profiles.encoder).fingerprint


def load_vectors(run: Run, split: str, dialogues: Sequence[Dialogue], encoder: SentenceEncoder) -> np.ndarray:
    """Return a vector for every utterance of a split in order, shape (utterances, dimension)."""
    if split == "train":
        return np.load(run.path("profiles", VECTORS), allow_pickle=False)
    return encode_utterances(dialogues, encoder)


def build_biographer(
    config: Config, run: Run, encoder: SentenceEncoder, dialogues: Sequence[Dialogue], vectors: np.ndarray
) -> StatisticalBiographer:
    """Return the biographer of the training dialogues; `vectors` has a row for every utterance of theirs."""
    labels = load_labels(run)
    prototypes = encoder.encode([f"I feel {label}." for label in labels])
    count = config.profiles.examples_per_emotion
    return StatisticalBiographer(dialogues, vectors, prototypes, labels, load_speakers(run), count)


def encode_utterances(dialogues: Sequence[Dialogue], encoder: SentenceEncoder) -> np.ndarray:
    """Return a vector for every utterance in order, shape (utterances, dimension)."""
    texts = [utterance.text for dialogue in dialogues for utterance in dialogue.utterances]
    blocks = [texts[start : start + 1024] for start in range(0, len(texts), 1024)]
    encoded = [encoder.encode(block) for block in progress(blocks, len(blocks), "blocks of 1,024 utterances encoded")]
    return np.concatenate(encoded)


def _save_vectors(path: Path, vectors: np.ndarray) -> None:
    buffer = io.BytesIO()  # into a file, NumPy would not tell that the disk is full
    np.save(buffer, vectors, allow_pickle=False)
    with replace_atomically(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
