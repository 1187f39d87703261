"""The adapter: a PEFT folder that plain `peft` loads to the same model, and that is refused where it does not fit."""

import re
import shutil

import pytest
import torch
from erckit.data.errors import DataError
from erckit.data.files import read_json
from erckit.data.labels import EMORYNLP, MELD
from erckit.pipeline.adapter import CARD, load_adapter
from erckit.pipeline.backbone import load_model, locate
from erckit.prompts.wording import Wording, read_wording
from peft import PeftModel
from transformers import AutoModelForCausalLM

BRIEF = read_wording("brief")
FILES = {"adapter_config.json", "adapter_model.safetensors", CARD, "wording"}


@pytest.fixture(scope="module")
def tiny_adapter(make_adapter):
    return make_adapter("qwen2")


def load_as_it_is(config):
    """The base model with its own attention, which takes unrolled prompts."""
    model = load_model(config.model)
    model.set_attn_implementation("sdpa")
    return model


@pytest.mark.parametrize("kind", ["qwen2", "embedded"])
def test_plain_peft_loads_the_same_model(make_adapter, kind):
    config, folder, trained = make_adapter(kind)
    ids = torch.randint(5, 500, (2, 30), generator=torch.Generator().manual_seed(1))
    options = {"is_decoder": True} if kind == "embedded" else {}
    plain = AutoModelForCausalLM.from_pretrained(locate(config.model.name), dtype=torch.float32, **options)
    with torch.no_grad():
        base = load_as_it_is(config).eval()(ids).logits
        expected = PeftModel.from_pretrained(plain, str(folder)).eval()(ids).logits
        loaded = load_adapter(load_as_it_is(config), folder, config, EMORYNLP, BRIEF)
        found = loaded(ids).logits

    trained.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, trained(ids).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - base).abs().max() > 0.1  # the adapter does something
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_folder_says_what_the_adapter_was_made_for_and_nothing_of_this_machine(tiny_adapter):
    config, folder, _ = tiny_adapter
    assert {path.name for path in folder.iterdir()} == FILES
    card = read_json(folder / CARD)
    assert card["labels"] == list(EMORYNLP) and card["wording"] == BRIEF.hash and card["seed"] == config.seed
    assert read_wording(str(folder / "wording")) == BRIEF
    assert (
        read_json(folder / "adapter_config.json")["base_model_name_or_path"] == card["base_model"] == config.model.name
    )


def test_the_embedded_model_is_named_as_such_and_not_looked_for_on_the_hub(make_adapter, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"asked the hub for {arguments}")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", refuse)
    _, folder, _ = make_adapter("embedded")
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "embedded"
    assert str(locate("embedded")) not in "".join(p.read_text() for p in folder.glob("*.json"))


def test_an_adapter_for_something_else_is_refused(tiny_adapter):
    config, folder, _ = tiny_adapter
    model = load_model(config.model)
    other_model = config.model_copy(update={"model": config.model.model_copy(update={"name": "embedded"})})
    both_ways = config.model_copy(update={"model": config.model.model_copy(update={"attention": "utterance"})})
    other_wording = Wording(dict(BRIEF.templates) | {"answer": "{label}"})
    refused = [
        (
            f"base_model {config.model.name!r}, whose files are others than those of 'embedded' here",
            "Set `model.name` to the adapter's base model, in the same form (hub name or folder), or train an adapter",
            (other_model, EMORYNLP, BRIEF),
        ),
        (
            "attention 'causal', expected 'utterance'",
            "Set `model.attention` to the adapter's, or train again.",
            (both_ways, EMORYNLP, BRIEF),
        ),
        (
            f"labels {list(EMORYNLP)!r}, expected {list(MELD)!r}",
            "Labels and their order must be those of the corpus; train an adapter for this corpus.",
            (config, MELD, BRIEF),
        ),
        (
            f"wording {BRIEF.hash!r}, expected {other_wording.hash!r}",
            "Set `prompts.template` to the adapter's wording (its folder `wording`), or train again.",
            (config, EMORYNLP, other_wording),
        ),
    ]
    for difference, remedy, asked in refused:
        message = f"{folder}: the adapter was made for {difference}. {remedy}"
        with pytest.raises(DataError, match=re.escape(message)):
            load_adapter(model, folder, *asked)


def test_the_same_model_in_another_folder_is_the_same_model(tiny_adapter, tmp_path):
    config, folder, _ = tiny_adapter
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(config.model.name, elsewhere)
    moved = config.model_copy(update={"model": config.model.model_copy(update={"name": str(elsewhere)})})
    load_adapter(load_model(moved.model), folder, moved, EMORYNLP, BRIEF)

    weights = bytearray((elsewhere / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (elsewhere / "model.safetensors").write_bytes(weights)
    with pytest.raises(DataError, match="whose files are others than"):
        load_adapter(load_model(moved.model), folder, moved, EMORYNLP, BRIEF)


def test_labels_in_another_order_are_other_labels(tiny_adapter):
    config, folder, _ = tiny_adapter
    turned = type(EMORYNLP)(EMORYNLP.names[::-1])
    with pytest.raises(DataError, match="the adapter was made for labels"):
        load_adapter(load_model(config.model), folder, config, turned, BRIEF)


def test_a_folder_that_is_no_adapter_of_erckit_is_refused(tiny_adapter, tmp_path):
    config, folder, _ = tiny_adapter
    message = f"{tmp_path / CARD}: missing, so this is no adapter that erckit made. Train one, or name its folder."
    with pytest.raises(DataError, match=re.escape(message)):
        load_adapter(None, tmp_path, config, EMORYNLP, BRIEF)

    shutil.copy(folder / CARD, tmp_path)  # a card alone is not enough
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'adapter_config.json'}: missing. Copy its folder")):
        load_adapter(load_model(config.model), tmp_path, config, EMORYNLP, BRIEF)
