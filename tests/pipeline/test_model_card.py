"""The model card says what the run recorded, each number with its interval, and no oracle's as a result."""

import hashlib
import re
import shutil

import numpy as np
import pytest
from erckit.data.errors import DataError
from erckit.data.files import hash_file, read_json, write_json, write_sealed
from erckit.pipeline.adapter import CARD, find_adapter
from erckit.pipeline.cli import main
from erckit.pipeline.manifest import read_manifest
from erckit.pipeline.model_card import find_hub_name, write_model_card
from erckit.pipeline.run import Run, run_stages
from huggingface_hub import ModelCard


@pytest.fixture(scope="module")
def evaluated(begin):
    """A run of the tiny configuration up to its metrics, answered with gold recent emotions too."""
    config, run = begin("predict.oracle=true")
    run_stages(config, run, last="evaluate")
    return run


@pytest.fixture
def run(evaluated, tmp_path):
    """A copy that may be changed."""
    shutil.copytree(evaluated.folder, tmp_path / "run")
    return Run(tmp_path / "run", seed=1)


def write(run: Run, **changes) -> str:
    found = find_adapter(run.folder, run.seed)
    return write_model_card(found, "emotions", read_json(found.folder / CARD) | changes)


def change_metrics(run: Run, change) -> dict:
    """Change the metrics of a run, so that they still count as made by its evaluation."""
    metrics = read_json(run.path("evaluate", "metrics.json"))
    change(metrics["splits"]["test"]["systems"]["model"])
    change_output(run, "evaluate", "metrics.json", metrics)
    return metrics


def change_output(run: Run, stage: str, name: str, value) -> None:
    folder = run.path(stage)
    write_json(folder / name, value)
    record = read_manifest(folder)
    record["outputs"][name]["sha256"] = hash_file(folder / name)
    write_sealed(folder / "manifest.json", record)


def test_every_system_stands_there_with_its_interval_and_oracles_are_marked(run):
    splits = read_json(run.path("evaluate", "metrics.json"))["splits"]
    rows = [line.split(" | ") for line in write(run).splitlines() if line.startswith("| ") and "[" in line]
    found = {tuple(row[1:3]): row[0] for row in rows}
    for name, test in splits["test"]["systems"].items():
        shown = [
            f"{one['w_f1']:.2f} [{one['w_f1_interval'][0]:.2f}, {one['w_f1_interval'][1]:.2f}]"
            for one in (splits["dev"]["systems"][name], test)
        ]
        assert found.pop(tuple(shown)).endswith("(oracle)") is test["oracle"]
    assert not found
    assert {"gold history"} == {name for name, test in splits["test"]["systems"].items() if test["oracle"]}


def test_the_header_is_one_that_the_hub_reads(run):
    test = read_json(run.path("evaluate", "metrics.json"))["splits"]["test"]["systems"]["model"]
    data = ModelCard(write(run, merged=True, base_model="meta/llama", dtype="bfloat16")).data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("transformers", "meta/llama", "finetune")
    assert data.model_name == "emotions" and "erckit" in data.tags
    assert [(r.metric_name, r.metric_value, r.dataset_name, r.dataset_split) for r in data.eval_results] == [
        ("W-F1, percent", round(test["w_f1"], 2), "cut", "test"),
        ("macro F1, percent", round(test["macro_f1"], 2), "cut", "test"),
        ("accuracy, percent", round(test["accuracy"], 2), "cut", "test"),
    ]
    adapter = ModelCard(write(run)).data
    assert (adapter.library_name, adapter.base_model_relation) == ("peft", "adapter")


def test_an_oracles_numbers_are_marked_everywhere_and_left_out_of_the_header(run):
    change_metrics(run, lambda model: model.update(oracle=True))
    card = write(run)
    assert ModelCard(card).data.eval_results is None and "metrics" not in ModelCard(card).data.to_dict()
    results = card.partition("## Results")[2].partition("## Limits")[0]
    assert "| the model (oracle) |" in results and "| emotion on test (oracle) |" in results
    for said in re.findall(r"[^.;|]*(?:Accuracy|macro F1|W-F1 \d|test W-F1)[^;|\n]*", results):
        assert "(oracle)" in said


def test_numbers_of_another_adapter_are_refused(run):
    weights = run.path("train", "adapter", "adapter_model.safetensors")
    metrics = run.path("evaluate", "metrics.json")
    message = (
        f"{metrics}: measured with another adapter than {weights.parent}, or changed since. Use `erckit run`, which "
        "brings the numbers up to date, or name the folder of the adapter by itself: its card then has none."
    )
    of_weights = f"{run.path('train')}: output adapter/{weights.name} was changed since train wrote it."
    for path, told in ((weights, of_weights), (metrics, message)):
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        with pytest.raises(DataError, match=re.escape(told)):
            write(run)
        path.write_bytes(before)
    record = read_manifest(run.path("evaluate"))
    record["inputs"]["seed-1/predict/test.jsonl"] = "0" * 64
    write_sealed(run.path("evaluate", "manifest.json"), record)
    with pytest.raises(DataError, match=re.escape(message)):
        write(run)


def test_a_run_that_was_not_evaluated_has_no_numbers(run):
    shutil.rmtree(run.path("evaluate"))
    card = write(run)
    assert "Not evaluated: nothing is known of how well it does." in card
    assert ModelCard(card).data.eval_results is None and "The checkpoint was chosen on dev" in card


def test_an_adapter_by_itself_has_neither_data_nor_numbers(run):
    found = find_adapter(run.path("train", "adapter"))
    card = write_model_card(found, "emotions", read_json(found.folder / CARD))
    assert "The folder does not say on what the adapter was trained." in card and "Not evaluated" in card
    assert "joyful, mad, peaceful, neutral, sad, powerful, scared" in card


def test_seeds_are_told_together_where_they_were_made_alike(run):
    assert "One seed was trained (1)" in write(run)
    shutil.copytree(run.folder / "seed-1", run.folder / "seed-2")
    scores = [40.0, 50.0]
    for seed, score in zip((1, 2), scores, strict=True):
        change_metrics(run.with_seed(seed), lambda model, score=score: model.update(w_f1=score))
    # Of two values, Student's t at 97.5 % is 12.7062.
    half = 12.7062 * np.std(scores, ddof=1) / 2**0.5
    told = f"Over 2 seeds, test W-F1 is 45.00 [{45 - half:.2f}, {45 + half:.2f}], with a standard deviation of 7.07."
    assert f"This is seed 1. {told}" in write(run)

    folder = run.with_seed(2).path("train")
    record = read_manifest(folder)
    record["config"]["train"]["epochs"] = 9
    write_sealed(folder / "manifest.json", record)
    assert "One seed was trained (1)" in write(run)


def test_what_a_reader_has_to_know_is_said(run, evaluated):
    card = write(run)
    assert "at most the 2 utterances before it, never a later one." in card
    assert "told, as the model itself answered them." in card
    assert "is told\nthat everybody is new, and the numbers above are with profiles." in card
    assert "in 4 bits" not in card
    assert "the numbers above are those of the 4-bit model" in write(
        run, merged=True, dtype="float32", made_on="cuda, bfloat16, nf4 base"
    )
    assert f"| test | 4 | {read_json(run.path('ingest', 'corpus.json'))['counts']['test']['utterances']} |" in card
    assert not re.search(r"\n{4}|[ \t]\n", card)


def test_the_card_names_no_path_of_this_machine(run, tmp_path):
    corpus = read_json(run.path("ingest", "corpus.json"))
    corpus["differences"] = ["meld-csv was passed over: /home/ada/x.csv:1: no column.", "train: 3 utterances."]
    change_output(run, "ingest", "corpus.json", corpus)
    card = write(run)
    assert "- train: 3 utterances.\n" in card
    assert not re.search(r"(?<![\w.])/(home|tmp|root|private|var)/", card)


@pytest.mark.parametrize(
    "name, made_from, expected",
    [
        ("embedded", "", "sentence-transformers/all-MiniLM-L6-v2"),
        ("meta/llama", "meta/llama@v2", "meta/llama"),
        ("models/llama", "the files of a folder", None),
    ],
)
def test_the_base_models_name_on_the_hub(name, made_from, expected):
    digest = hashlib.sha256(made_from.encode()).hexdigest()
    assert find_hub_name({"base_model": name, "revision": "v2", "base_fingerprint": digest}) == expected


def test_the_command_merges_a_run_and_writes_its_card(run, tmp_path, capsys):
    assert main(["merge", str(run.folder), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"{tmp_path / 'out'}: 17 files, ")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.model_name == "out" and card.data.base_model is None
    assert "a base model that is not on the hub with the LoRA adapter" in card.text
