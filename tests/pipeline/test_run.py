"""The run folder: what is fresh stays, all else is made again, and the manifest says of what."""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from erckit import __version__
from erckit.pipeline import run as run_module
from erckit.pipeline.config import Config, load_config
from erckit.pipeline.manifest import MANIFEST, STARTED, read_manifest
from erckit.pipeline.run import Fresh, Run, RunError, Stale, forecast, run_stage, run_stages, split_plan, state
from erckit.pipeline.stages import STAGES
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.fake_stages import EDITS, FILES, LABELS, SEEDED, TABLE, edit, make_config, new_world, sha256


@pytest.fixture
def world():
    with new_world() as made:
        yield made


@settings(max_examples=30, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 2)), max_size=3),
            st.sampled_from([(1,), (1, 2), (2,)]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_stages_that_run_are_those_that_brute_force_finds(rounds):
    with new_world() as world:
        built = {}  # what each stage last looked at, and what it made of it
        for edits, seeds in rounds:
            for (kind, what), number in edits:
                edit(world, kind, what, number)
            run = world.run(*seeds)
            foretold = dict(forecast(world.config, run, "ingest", "report"))
            for name, seed in instances(seeds):
                one = run.with_seed(seed or seeds[0])
                expected = has_to_run(world, name, one, built.get((name, seed)))
                built[name, seed] = (world.looks_at(name, one), world.outputs(name, world.config, one))
                assert run_stage(name, world.config, one) == expected, (name, seed)
                assert (expected, foretold[label(name, seed, seeds)]) not in [(True, Fresh())]
                assert expected or "after" in getattr(foretold[label(name, seed, seeds)], "reason", "after")
            assert world.go(*seeds) == []  # nothing is left to do


def instances(seeds):
    return [(name, seed) for name in FILES for seed in (seeds if name in SEEDED else [None])]


def label(name, seed, seeds):
    return f"{name} (seed {seed})" if seed and len(seeds) > 1 else name


def has_to_run(world, name, run, before) -> bool:
    """Brute force: compare everything, byte for byte, with what was there when the stage last ran."""
    if before is None or not world.place(f"{name}/{MANIFEST}", run).is_file():
        return True
    looked_at, made = before
    intact = all(path.is_file() and path.read_bytes() == content for path, content in made.items())
    return not intact or looked_at != world.looks_at(name, run)


def test_seeded_stages_run_for_each_seed_and_the_report_once_over_all(world):
    seen = []
    world.before = lambda name, run: seen.append((name, run.seeds)) if name == "report" else None

    calls = world.go(5, 6)

    assert calls == [*[(n, None) for n in FILES if n not in (*SEEDED, "report")], *SEEDS_5_6, ("report", None)]
    assert seen == [("report", (5, 6))]
    assert world.go(5) == [("report", None)]  # the same seeds are there, the report now covers one
    inputs = json.loads(world.run(5).path("report", MANIFEST).read_text())["inputs"]
    assert "seed-5/evaluate/metrics.json" in inputs and not any(path.startswith("seed-6") for path in inputs)


SEEDS_5_6 = [(name, seed) for name in SEEDED for seed in (5, 6)]


def test_a_stage_that_asks_the_configuration_for_the_seed_gets_its_own(world, monkeypatch):
    seeds = []
    module = SimpleNamespace(run=lambda config, run: seeds.append((config.seed, run.seed)) or "nothing")
    world.go(1, 2, last="prompts")
    monkeypatch.setitem(sys.modules, TABLE["train"].module, module)

    run_stages(world.config, world.run(1, 2), "train", "train")

    assert seeds == [(1, 1), (2, 2)]


def test_paths(tmp_path):
    run = Run(tmp_path, 3)

    assert run.path("ingest", "a", "b") == tmp_path / "ingest" / "a" / "b"
    assert run.path("train") == tmp_path / "seed-3" / "train"
    assert run.with_seed(4).path("predict", "dev.jsonl") == tmp_path / "seed-4" / "predict" / "dev.jsonl"
    assert run.path("report") == run.with_seed(4).path("report") == tmp_path / "report"
    assert run.seeds == (3,) and dataclasses.replace(run, seeds=(3, 4)).with_seed(4).seeds == (3, 4)


@pytest.mark.parametrize(
    "kind, what, stage, reason",
    [
        ("set", "prompts.window", "prompts", "prompts.window changed: 6 -> 12"),
        ("set", "model.name", "train", "model.name changed: embedded -> v2"),
        ("corpus", "dev", "ingest", "corpus/dev.txt changed"),
        ("tamper", LABELS, "profiles", "ingest/labels.json changed"),
        ("tamper", LABELS, "ingest", "output labels.json was changed"),
        ("delete", "train/adapter/weights.bin", "train", "output adapter/weights.bin is missing"),
        ("delete", "train/adapter/weights.bin", "predict", "seed-3/train/adapter/weights.bin is missing"),
        ("tamper", f"train/{MANIFEST}", "train", "its manifest.json is broken"),
        ("forget", "evaluate", "evaluate", "never run"),
        ("wording", "", "prompts", "its wording, model or method changed"),
    ],
)
def test_a_stale_stage_says_why(world, kind, what, stage, reason):
    world.go(3)
    edit(world, kind, what, 2)

    assert state(stage, world.config, world.run(3)) == Stale(reason)


def test_trackers_change_no_artefact(world):
    world.go()
    world.config = make_config(str(world.corpus), "train.report_to=[tensorboard]")

    assert world.go() == []


def test_every_inert_key_is_a_key():
    for section, keys in run_module.INERT.items():
        assert keys <= Config.model_fields[section].annotation.model_fields.keys()


def test_several_reasons_are_counted(world):
    world.go(last="prompts")
    edit(world, "set", "prompts.window", 2)
    edit(world, "tamper", LABELS, 2)
    edit(world, "wording", "", 2)

    assert state("prompts", world.config, world.run()) == Stale("prompts.window changed: 6 -> 12 and 2 more")


def test_a_new_version_of_erckit_makes_everything_stale(world, monkeypatch):
    world.go()
    monkeypatch.setattr(run_module, "__version__", "9.9")

    for name in FILES:
        assert state(name, world.config, world.run()) == Stale(f"erckit changed: {__version__} -> 9.9")


def test_the_forecast_names_what_comes_first_and_touches_nothing(world):
    never = Stale("never run")
    assert list(forecast(world.config, world.run(), "ingest", "prompts")) == [
        ("ingest", never),
        ("profiles", Stale("after ingest")),
        ("prompts", Stale("after ingest")),
    ]
    assert not world.runs.exists()

    world.go(1, 2)
    edit(world, "set", "train.epochs", 2)
    before = {path: path.read_bytes() for path in world.runs.rglob("*") if path.is_file()}
    foretold = dict(forecast(world.config, world.run(1, 2), "ingest", "report"))

    changed = Stale("train.epochs changed: 3 -> 12")
    assert foretold["ingest"] == foretold["profiles"] == foretold["prompts"] == Fresh()
    assert foretold["train (seed 1)"] == foretold["train (seed 2)"] == changed
    assert foretold["predict (seed 2)"] == foretold["report"] == Stale("after train")
    assert foretold["evaluate (seed 1)"] == Stale("after predict")
    assert before == {path: path.read_bytes() for path in world.runs.rglob("*") if path.is_file()}


def test_stages_before_the_first_have_to_be_fresh(world):
    world.go()
    edit(world, "set", "prompts.window", 0)

    with pytest.raises(
        RunError, match=r"prompts is not up to date \(prompts.window changed: 6 -> 10\), and predict builds"
    ):
        world.go(first="predict")
    assert world.calls == []
    with pytest.raises(RunError, match="--from train --to ingest: train comes after ingest"):
        world.go(first="train", last="ingest")


def test_a_missing_input_is_named(world):
    with pytest.raises(RunError, match="profiles reads ingest/dialogues.train.jsonl, which is missing."):
        run_stage("profiles", world.config, world.run())
    assert world.calls == []


def test_an_adapter_from_elsewhere_takes_the_place_of_training(world, tmp_path):
    world.config = make_config(str(world.corpus), f"predict.adapter={tmp_path}")
    with pytest.raises(FileNotFoundError, match="found no adapter there. Set predict.adapter to its folder"):
        world.go()
    assert world.calls == []  # known before anything ran
    (tmp_path / "weights.bin").write_text("1")
    for file in ("train/adapter/weights.bin", "train/adapter/config.json", "train/log.jsonl"):
        path = world.place(file, world.run())  # the fake stages read them all the same
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("elsewhere")

    assert [name for name, _ in world.go()] == [name for name in FILES if name != "train"]
    assert world.go() == []
    (tmp_path / "weights.bin").write_text("2")
    assert state("predict", world.config, world.run()) == Stale("adapter/weights.bin changed")
    assert split_plan(world.config, "train", "train") == (["ingest", "profiles", "prompts"], ["train"])


def test_a_corpus_that_moves_changes_nothing_but_its_path(world, tmp_path):
    world.go()
    world.corpus = world.corpus.rename(tmp_path / "elsewhere")

    assert world.go() == []


def test_a_manifest_says_what_was_made_of_what_and_how(world):
    def add_unfinished_files(name, run):
        for part in (
            "checkpoints/step-1/weights.bin",
            ".draft.txt",
            "adapter/.cache/x",
            "adapter/checkpoints/kept.txt",
        ):
            path = run.path("train", part)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")

    world.go(2, last="prompts")
    world.before = add_unfinished_files
    world.go(2, last="train")
    run = world.run(2)
    folder = run.path("train")
    manifest = read_manifest(folder)

    assert manifest.keys() == {
        "stage", "key", "erckit", "config", "inputs", "outputs", "seed", "fingerprint", "versions", "started",
        "seconds", "peak_memory_mib", "peak_gpu_memory_mib", "summary",
    }  # fmt: skip
    assert (manifest["stage"], manifest["seed"], manifest["summary"]) == ("train", 2, "wrote 3 files.")
    outputs = ("adapter/checkpoints/kept.txt", "adapter/config.json", "adapter/weights.bin", "log.jsonl")
    assert manifest["outputs"] == {
        path: {"sha256": sha256(folder / path), "bytes": len((folder / path).read_bytes())} for path in outputs
    }
    inputs = FILES["train"]["train/log.jsonl"]
    assert manifest["inputs"] == {path: sha256(run.folder / path) for path in inputs}
    settings = {s: getattr(world.config, s).model_dump(mode="json") for s in ("train", "model")}
    del settings["train"]["report_to"]
    assert manifest["config"] == settings
    assert manifest["versions"].keys() >= {"python", "torch", "transformers", "trl", "peft"}
    assert load_config(str(run.folder / "config.yaml")) == world.config
    assert not (folder / STARTED).exists()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can only be reset on Linux")
def test_the_peak_of_memory_is_that_of_the_stage(world):
    world.before = lambda name, run: len(bytearray(os.urandom(1) * (300 << 20))) if name == "profiles" else None
    world.go(last="prompts")

    peaks = {
        name: json.loads(world.run().path(name, MANIFEST).read_text())["peak_memory_mib"]
        for name in ("ingest", "profiles", "prompts")
    }
    assert peaks["profiles"] - peaks["ingest"] > 250
    assert peaks["profiles"] - peaks["prompts"] > 250


def test_memory_of_a_gpu_in_use_is_measured_from_the_start_of_each_stage(world, monkeypatch, capsys):
    """Tensors of 3 GiB live in `profiles`; CUDA itself is taken into use there."""
    gpu = {"in use": False, "peak": 0}
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: gpu["in use"],
        reset_peak_memory_stats=lambda: gpu.update(peak=0),
        max_memory_allocated=lambda: gpu["peak"],
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    world.before = lambda name, run: gpu.update({"in use": True, "peak": 3 << 30}) if name == "profiles" else None
    world.go(last="prompts")

    peaks = [
        json.loads(world.run().path(name, MANIFEST).read_text())["peak_gpu_memory_mib"]
        for name in ("ingest", "profiles", "prompts")
    ]
    assert peaks == [None, 3072.0, None]
    assert [line.partition("iB")[2] for line in capsys.readouterr().out.splitlines()] == [
        "",
        " and 3.0 GiB of the GPU",
        "",
    ]


def test_one_line_a_stage(world, capsys):
    world.go(1, 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(instances((1, 2)))
    assert re.fullmatch(r"ingest: wrote 5 files in \d\.\d s, peak [\d.]+ [MG]iB", lines[0])
    assert lines[4].startswith("train (seed 2): wrote 3 files in ")

    world.go(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [f"{name}: up to date" for name in list(FILES)[:-1]]


def test_every_stage_of_the_table_reads_what_stands_before_it():
    names = list(STAGES)
    for position, (name, stage) in enumerate(STAGES.items()):
        assert {pattern.split("/")[0] for pattern in stage.inputs} <= set(names[:position])
        assert all("/" in pattern for pattern in stage.inputs)
        assert set(stage.sections) <= set(Config.model_fields)
        assert stage.module == f"erckit.pipeline.stages.{name}"
