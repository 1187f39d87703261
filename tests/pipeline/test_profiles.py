"""The profiles stage: vectors are written and read dialogue by dialogue, and are those of the whole."""

import io
import shutil

import numpy as np
from erckit.pipeline.artefacts import load_dialogues
from erckit.pipeline.run import Run
from erckit.pipeline.stages import profiles


class Lengths:
    """An encoder whose vectors say how long a text is, and how many texts it has read at once."""

    dimension = 3

    def __init__(self):
        self.blocks = []

    def encode(self, texts):
        self.blocks += [len(texts)] if texts else []
        lengths = np.array([len(text) for text in texts], dtype=np.float32).reshape(-1, 1)
        return np.hstack([lengths, -lengths, lengths / 7])


def test_vectors_of_blocks_are_kept_as_numpy_keeps_an_array_and_come_back_by_dialogue(prepared, tmp_path, monkeypatch):
    run = Run(tmp_path / "run", seed=1)
    shutil.copytree(prepared.path("ingest"), run.path("ingest"))
    dialogues, encoder = load_dialogues(run, "train"), Lengths()
    whole = encoder.encode([utterance.text for dialogue in dialogues for utterance in dialogue.utterances])
    monkeypatch.setattr(profiles, "BLOCK", 20)
    path = run.path("profiles", profiles.VECTORS)

    encoder.blocks = []
    profiles._save_vectors(path, profiles.encode_dialogues(iter(dialogues), encoder), encoder.dimension)
    assert sum(encoder.blocks) == len(whole) and max(encoder.blocks) < 20 + 6 and len(encoder.blocks) > 2
    expected = io.BytesIO()
    np.save(expected, whole)
    assert path.read_bytes() == expected.getvalue()
    for split in ("train", "dev"):
        found, vectors = zip(*profiles.stream_vectors(run, split, encoder), strict=True)
        assert list(found) == load_dialogues(run, split)
        assert [len(part) for part in vectors] == [len(dialogue.utterances) for dialogue in found]
        np.testing.assert_array_equal(
            np.concatenate(vectors), encoder.encode([u.text for dialogue in found for u in dialogue.utterances])
        )
