"""What others are given: merged weights that compute the same, and uploads that show no more than was asked."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from erckit.data.errors import DataError
from erckit.data.files import read_json, write_sealed
from erckit.data.labels import EMORYNLP
from erckit.pipeline import sharing
from erckit.pipeline.adapter import find_adapter, read_card
from erckit.pipeline.backbone import fingerprint, locate
from erckit.pipeline.cli import main
from erckit.pipeline.recognizer import Recognizer
from erckit.pipeline.sharing import gather_files, merge_adapter, push
from erckit.prompts.wording import read_wording
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

IDS = torch.randint(5, 500, (2, 30), generator=torch.Generator().manual_seed(1))
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "erckit.json", "README.md"}
WORDING = {f"wording/{name}.txt" for name in read_wording("brief").templates}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


@pytest.fixture(scope="module")
def lay_over(make_adapter):
    """A function from a kind to the logits of plain transformers, those of plain PEFT over it, and the adapter."""

    def load(kind):
        config, folder, _ = make_adapter(kind)
        options = {"is_decoder": True} if kind == "embedded" else {}
        base = AutoModelForCausalLM.from_pretrained(locate(config.model.name), dtype=torch.float32, **options)
        alone = logits(base)
        return alone, logits(PeftModel.from_pretrained(base, str(folder))), folder

    return load


@pytest.fixture(scope="module")
def merged(make_adapter, tmp_path_factory):
    """A model in a folder with an adapter merged into it, and the folder of the adapter."""
    _, folder, _ = make_adapter("qwen2")
    made = tmp_path_factory.mktemp("merged") / "model"
    merge_adapter(find_adapter(folder), made)
    return made, folder


@pytest.mark.parametrize("kind", ["qwen2", "embedded"])
def test_plain_transformers_loads_what_was_merged_and_gets_the_same_logits(lay_over, kind, tmp_path):
    base, expected, folder = lay_over(kind)
    merge_adapter(find_adapter(folder), tmp_path / "merged")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))

    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - base).abs().max() > 0.1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert len(tokenizer("Who left the hatch open?")["input_ids"]) > 4
    config = read_json(tmp_path / "merged" / "config.json")
    assert "erckit" not in json.dumps(config)  # its own attention is not asked for


@pytest.mark.parametrize("dtype, stored", [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_an_adapter_over_4_bits_is_merged_into_the_whole_base_model(lay_over, tmp_path, dtype, stored):
    _, expected, folder = lay_over("qwen2")
    found = find_adapter(folder)
    model = found.config.model.model_copy(update={"quantization": "nf4", "device": "cuda", "dtype": dtype})
    merge_adapter(replace(found, config=found.config.model_copy(update={"model": model})), tmp_path / "merged")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert {tensor.dtype for tensor in loaded.parameters()} == {stored} and "quantization" not in str(loaded.config)
    apart = (logits(loaded.float()) - expected).abs().max()
    assert apart < 1e-4 if stored == torch.float32 else 1e-4 < apart < 0.5


def test_the_base_models_own_number_format_is_kept(make_adapter, tmp_path):
    _, folder, _ = make_adapter("qwen2")
    found = find_adapter(folder)
    shutil.copytree(found.config.model.name, tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    shutil.copytree(folder, tmp_path / "adapter")
    model = found.config.model.model_copy(update={"name": str(tmp_path / "base")})
    card = read_card(folder) | {"base_fingerprint": fingerprint(model), "base_model": model.name}
    write_sealed(tmp_path / "adapter" / "erckit.json", card)
    merge_adapter(find_adapter(tmp_path / "adapter"), tmp_path / "merged")
    assert read_json(tmp_path / "merged" / "config.json")["dtype"] == "bfloat16"


def test_erckit_answers_alike_from_an_adapter_and_from_what_it_was_merged_into(merged):
    made, folder = merged
    said = [("Ada", "Who left the hatch open?"), ("Ben", "Not me!"), ("Ada", "So it was nobody.")]
    answers = []
    for recognizer in (Recognizer.load(folder), Recognizer.load(made)):
        conversation = recognizer.conversation()
        answers.append([conversation.add(*one) for one in said])
        assert not any(parameter.requires_grad for parameter in recognizer.model.parameters())
    for one, other in zip(*answers, strict=True):
        assert (one.label, one.prompt) == (other.label, other.prompt)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_what_was_merged_names_its_labels_and_wording_and_nothing_of_this_machine(merged):
    made, folder = merged
    card, name = read_json(made / "erckit.json"), read_json(folder / "erckit.json")["base_model"]
    assert card["labels"] == list(EMORYNLP) and card["merged"] and card["base_model"] is None
    assert read_wording(str(made / "wording")) == read_wording("brief")
    assert oct(made.stat().st_mode)[-3:] == "755" and {oct(f.stat().st_mode)[-3:] for f in made.glob("*.*")} == {"644"}
    text = "".join(path.read_text() for path in made.rglob("*") if path.suffix in (".json", ".md", ".txt", ".jinja"))
    assert name not in text and str(folder.parent) not in text and str(made.parent) not in text
    header = ModelCard.load(made / "README.md").data.to_dict()
    assert header["library_name"] == "transformers" and "base_model" not in header


def test_nothing_is_merged_over_what_is_there_and_nothing_twice(merged, tmp_path, monkeypatch):
    made, folder = merged
    with pytest.raises(DataError, match=re.escape(f"{made}: it is there already. Name another folder, or remove it.")):
        merge_adapter(find_adapter(folder), made)
    with pytest.raises(DataError, match=re.escape(f"{made}: merged already. Use it as it is.")):
        merge_adapter(find_adapter(made), tmp_path / "again")
    monkeypatch.setattr(sharing, "write_model_card", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge_adapter(find_adapter(folder), tmp_path / "again")
    assert not list(tmp_path.iterdir())


# Uploads.


@pytest.fixture
def hub(monkeypatch):
    """A hub that notes what it is asked; `is_private` is that of the repository, None before it is made."""
    made = SimpleNamespace(calls=[], is_private=None, files={}, error=None)

    class Api:
        def create_repo(self, repository, *, private, exist_ok):
            if made.error:
                raise made.error
            made.calls.append(("create_repo", repository, private, exist_ok))
            made.is_private = private if made.is_private is None else made.is_private

        def model_info(self, repository):
            return SimpleNamespace(private=made.is_private)

        def preupload_lfs_files(self, repository, additions):
            made.calls.append(("preupload", repository, *(one.path_in_repo for one in additions)))

        def create_commit(self, repository, operations, *, commit_message):
            made.calls.append(("create_commit", repository))
            for one in operations:
                with one.as_file() as file:
                    made.files[one.path_in_repo] = file.read()

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    return made


@pytest.fixture(scope="module")
def shareable(make_adapter):
    """The folder of an adapter over the embedded model, whose wording was the user's own."""
    _, folder, _ = make_adapter("embedded")
    card = read_card(folder)
    card["protocol"]["template"] = str(folder / "mine")
    write_sealed(folder / "erckit.json", card)
    return folder


def test_an_adapter_is_uploaded_in_one_commit_privately(shareable, hub, tmp_path, capsys):
    assert main(["push", str(shareable), "ada/emotions"]) == 0

    assert hub.calls[0] == ("create_repo", "ada/emotions", True, True)
    assert hub.calls[-1] == ("create_commit", "ada/emotions") and hub.calls.count(hub.calls[-1]) == 1
    assert {name for call, _, *names in hub.calls if call == "preupload" for name in names} == ADAPTER | WORDING
    assert set(hub.files) == ADAPTER | WORDING
    for name in hub.files.keys() - {"README.md", "erckit.json"}:
        assert hub.files[name] == (shareable / name).read_bytes()
    (tmp_path / "erckit.json").write_bytes(hub.files["erckit.json"])
    card = read_card(tmp_path)
    assert card == read_card(shareable) | {"protocol": card["protocol"]}
    assert card["protocol"]["template"] == "mine" and str(shareable).encode() not in b"".join(hub.files.values())
    header = ModelCard(hub.files["README.md"].decode()).data
    assert header.base_model == "sentence-transformers/all-MiniLM-L6-v2" and header.library_name == "peft"
    assert re.fullmatch(r"ada/emotions: 13 files, \d MiB, private\n", capsys.readouterr().out)


def test_what_was_uploaded_is_an_adapter_that_erckit_loads(shareable, hub, tmp_path):
    push(find_adapter(shareable), "ada/emotions", public=False)
    for name, content in hub.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    one, other = (Recognizer.load(folder).conversation().add("Ada", "So.") for folder in (shareable, tmp_path))
    assert one == other


def test_public_is_said_and_never_assumed(shareable, hub, capsys):
    assert main(["push", str(shareable), "ada/emotions", "--public"]) == 0
    assert hub.calls[0] == ("create_repo", "ada/emotions", False, True)
    assert capsys.readouterr().out.endswith(", public\n")
    hub.calls.clear()
    assert main(["push", str(shareable), "ada/emotions"]) == 2
    assert capsys.readouterr().err == (
        "erckit: ada/emotions: it is there already, and everybody sees it. Say --public if that is meant.\n"
    )
    assert [call for call, *_ in hub.calls] == ["create_repo"]  # and nothing was uploaded


def test_a_merged_model_is_uploaded_as_it_is(merged, hub):
    made, _ = merged
    push(find_adapter(made), "ada/emotions", public=False)
    expected = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert hub.files.keys() == expected.keys()
    assert {name for name in expected if hub.files[name] != expected[name]} == set()


def test_a_merged_model_that_was_changed_is_refused(merged, tmp_path):
    made = tmp_path / "merged"
    shutil.copytree(merged[0], made)
    path = made / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match=re.escape(f"{path}: changed since erckit wrote it. Copy its folder again")):
        Recognizer.load(made)


def test_an_adapter_of_a_base_model_that_nobody_else_has_is_not_uploaded(merged, hub):
    _, folder = merged
    name = read_json(folder / "erckit.json")["base_model"]
    message = f"{folder}: its base model is the folder {name!r}, which nobody else has. Use `erckit merge`, and push"
    with pytest.raises(DataError, match=re.escape(message)):
        push(find_adapter(folder), "ada/emotions", public=True)
    assert not hub.calls


def test_a_card_of_the_users_own_is_kept(shareable, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(shareable, folder)
    (folder / "README.md").write_text("mine")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("of a download")
    files = gather_files(find_adapter(folder), "ada/emotions")
    assert files["README.md"] == folder / "README.md" and files.keys() == ADAPTER | WORDING


def test_without_a_token_nothing_is_tried(shareable, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    message = "no token for the hub: nobody is logged in here. Run `hf auth login`, or set HF_TOKEN to a token that may"
    with pytest.raises(DataError, match=re.escape(message)):
        push(find_adapter(shareable), "ada/emotions", public=False)
    assert not hub.calls


@pytest.mark.parametrize(
    "error, reason",
    [
        (HfHubHTTPError.__bases__[0]("no route to host"), "no route to host"),
        (OSError("disk\nmore"), "disk"),
        (RuntimeError("upload broke."), "upload broke"),
    ],
)
def test_a_hub_that_does_not_take_it_says_why(shareable, hub, error, reason, capsys):
    hub.error = error
    assert main(["push", str(shareable), "ada/emotions"]) == 2
    assert capsys.readouterr().err == (
        f"erckit: ada/emotions: the hub did not take it ({reason}). Check the name (OWNER/NAME), what the token may "
        "do, and the network.\n"
    )


@pytest.mark.parametrize(
    "repository, reason", [("ada/emotions", "offline mode is enabled"), ("ada/b/c", "Repo id must be")]
)
def test_the_hubs_own_library_without_a_network(shareable, repository, reason, monkeypatch):
    """Tests run with HF_HUB_OFFLINE."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    with pytest.raises(DataError, match=f"^{repository}: the hub did not take it .*{reason}"):
        push(find_adapter(shareable), repository, public=False)
