"""The language model: where it runs, in which numbers, what of it is trained, and how the embedded one starts."""

import math
import re

import numpy as np
import pytest
import torch
from erckit.data.errors import DataError
from erckit.pipeline.backbone import (
    choose_dtype,
    load_model,
    load_tokenizer,
    lora,
    mixes_precision,
    quantization,
)
from erckit.pipeline.config import ConfigError, Model, load_config, shipped_configs
from erckit.prompts.tree import unroll

QUANTIZED = [name for name in shipped_configs() if load_config(name).model.quantization == "nf4"]


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU with bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_the_embedded_model_starts_near_a_uniform_answer(load_tiny, talk, make_trees, score_prompts):
    """Its loss is near ln 7; an untrained head would start at 2.4 to 3.5."""
    parts = load_tiny("embedded")
    trees = make_trees(parts, [talk(np.random.default_rng(7), "d", 12)])
    prompts = [parts.tokens.ids(unroll(tree, branch, {}, parts.wording)) for tree in trees for branch in tree.branches]
    with torch.no_grad():
        scores = score_prompts(parts, prompts)
    gold = [parts.labels.index(branch.label) for tree in trees for branch in tree.branches]

    loss = -scores[range(len(gold)), gold].mean().item()
    assert abs(loss - math.log(7)) < 0.35


def test_its_head_passes_hidden_states_on(load_tiny):
    """The head's transform is the layer norm of its input, scaled: nothing of the hidden state is lost."""
    head = load_tiny("embedded").model.cls.predictions.transform
    hidden = torch.randn(5, head.dense.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        passed = head(hidden)
    expected = 0.3 * torch.nn.functional.layer_norm(hidden, hidden.shape[-1:])
    torch.testing.assert_close(passed, expected, atol=5e-3, rtol=0)


def test_numbers_follow_the_device(gpu, monkeypatch):
    assert choose_dtype(Model()) == torch.bfloat16
    assert choose_dtype(Model(device="cpu")) == torch.float32
    assert choose_dtype(Model(dtype="float16")) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose_dtype(Model()) == torch.float32


def test_without_a_gpu_auto_is_float32(no_gpu, load_tiny):
    assert choose_dtype(Model()) == torch.float32
    assert {p.dtype for p in load_model(Model(name=load_tiny("qwen2").config.name)).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("dtype", "capabilities", "expected"),
    [
        ("auto", {}, False),
        ("auto", {"avx512_bf16": True}, True),
        ("auto", {"avx512_bf16": False, "amx_bf16": True}, True),
        ("float32", {"avx512_bf16": True}, False),
        ("bfloat16", {}, True),
    ],
)
def test_training_mixes_precision_where_the_processor_can(no_gpu, monkeypatch, dtype, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert mixes_precision(Model(dtype=dtype)) == expected


@pytest.mark.parametrize("config", [Model(quantization="nf4"), Model(device="cuda")], ids=["nf4", "cuda"])
def test_without_a_gpu_what_needs_one_is_refused(no_gpu, config):
    message = (
        "model.quantization and model.device ask for a CUDA device, and none is here. Run on a machine with an "
        "NVIDIA GPU, or set `model.quantization: none` and `model.device: auto`."
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_model(config)


def test_there_are_quantized_configurations():
    assert QUANTIZED


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_configurations_follow_the_qlora_recipe(gpu, name):
    settings = quantization(load_config(name).model).to_dict()
    expected = {
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    }
    assert {key: settings[key] for key in expected} == expected


def test_the_adapter_covers_all_linear_layers(load_tiny):
    from peft import get_peft_model

    parts = load_tiny("qwen2")
    linear = {name for name, m in parts.model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"}
    adapted = get_peft_model(load_model(parts.config), lora(parts.config, rank=3, alpha=7, dropout=0.25))

    found = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default"): module
        for name, module in adapted.named_modules()
        if name.endswith("lora_A.default")
    }
    assert found.keys() == linear
    assert {matrix.out_features for matrix in found.values()} == {3}
    settings = adapted.peft_config["default"]
    assert (settings.lora_alpha, settings.lora_dropout, settings.task_type) == (7, 0.25, "CAUSAL_LM")


def test_of_the_embedded_model_the_head_is_trained_as_a_whole(load_tiny):
    from peft import get_peft_model

    config = load_tiny("embedded").config
    adapted = get_peft_model(load_model(config), lora(config, rank=3, alpha=7, dropout=0.0))
    whole = {name for name, p in adapted.named_parameters() if p.requires_grad and "lora" not in name}
    assert whole == {
        f"base_model.model.cls.predictions.transform.modules_to_save.default.{layer}.{kind}"
        for layer in ("dense", "LayerNorm")
        for kind in ("weight", "bias")
    }
    assert not any("lora" in name and "transform" in name for name, _ in adapted.named_parameters())


@pytest.mark.parametrize("load", [load_tokenizer, load_model])
@pytest.mark.parametrize(
    ("name", "where"), [("nobody/no-such-model", "the hub"), ("{folder}", "this folder")], ids=["hub", "folder"]
)
def test_a_model_that_cannot_be_loaded_is_named(tmp_path, load, name, where):
    name = name.format(folder=tmp_path)
    message = (
        re.escape(f"model {name!r} cannot be loaded from {where} (")
        + ".*"
        + re.escape("). Expected 'embedded', a folder, or a name on the hub. Check the spelling; gated models need a ")
    )
    with pytest.raises(DataError, match=message):
        load(Model(name=name, device="cpu"))


def test_a_tokenizer_without_a_padding_token_takes_its_last(load_tiny, tiny_tokenizer, tmp_path):
    tokenizer = tiny_tokenizer("llama")
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    bare.save_pretrained(tmp_path)
    load_tiny("llama").model.config.save_pretrained(tmp_path)

    loaded = load_tokenizer(Model(name=str(tmp_path)))
    assert loaded.pad_token_id == tokenizer.eos_token_id
