"""The real command on a cut of the sample corpus: what it leaves, and that it does nothing twice."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from erckit.data.erckit_jsonl import read_dialogues
from erckit.data.labels import EMORYNLP
from erckit.pipeline.predictions import read_predictions
from erckit.pipeline.stages import STAGES
from erckit.prompts.wording import FIELDS
from sklearn.metrics import f1_score

SPLITS, ASKED, SYSTEMS = ("train", "dev", "test"), ("dev", "test"), ("majority", "tfidf", "encoder")
WORDING = {f"wording/{name}.txt" for name in FIELDS}
WRITTEN = {
    "ingest": {*(f"dialogues.{split}.jsonl" for split in SPLITS), "speakers.json", "labels.json", "corpus.json"},
    "profiles": {"facts.jsonl", "index.faiss", "rows.npz", "store.json", "vectors.train.npy"},
    "prompts": {
        *(f"{split}.jsonl" for split in SPLITS),
        *(
            f"export/{split}.{form}.{suffix}"
            for split in SPLITS
            for form in ("prompt_completion", "messages")
            for suffix in ("jsonl", "parquet")
        ),
        "export/README.md",
        *WORDING,
        "summary.json",
    },
    "baselines": {f"{split}.{system}.jsonl" for split in ASKED for system in SYSTEMS},
    "train": {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/erckit.json",
        *(f"adapter/{path}" for path in WORDING),
        "log.jsonl",
    },
    "predict": {*(f"{split}.jsonl" for split in ASKED), *(f"{split}.oracle.jsonl" for split in ASKED)},
    "evaluate": {"metrics.json"},
    "report": {"index.html"},
}
OF_THE_RUN = {".lock", "config.yaml"}  # the two that every command writes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One place for the runs of this file: what does not depend on the model is made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def erckit(folder, tiny_config, tiny_model):
    """A function from a kind of model and further options to the lines that `erckit run` says; it must succeed."""

    def run(kind, *options):
        settings = [
            f"model.name={tiny_model(kind)}",
            "prompts.chat=true",
            "prompts.template=instruct",
            "predict.oracle=true",
        ]
        command = [
            sys.executable,
            "-m",
            "erckit.pipeline.cli",
            "run",
            str(tiny_config),
            "--runs",
            str(folder),
            *options,
        ]
        command += [part for setting in settings for part in ("--set", setting)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "Warning" not in done.stderr
        return done.stdout.splitlines()

    return run


def expected_files(seeds: tuple[int, ...]) -> set[str]:
    files = set(OF_THE_RUN)
    for name, stage in STAGES.items():
        for home in [f"seed-{seed}/{name}" for seed in seeds] if stage.seeded else [name]:
            files |= {f"{home}/{path}" for path in {*WRITTEN[name], "manifest.json"}}
    return files


def files_of(run: Path) -> dict[str, int]:
    """Every file below the run folder with the time it was changed; checkpoints of training aside."""
    return {
        path.relative_to(run).as_posix(): path.stat().st_mtime_ns
        for path in run.rglob("*")
        if path.is_file() and "checkpoints" not in path.parts
    }


def without_files_of_the_run(files: dict[str, int]) -> dict[str, int]:
    return {path: time for path, time in files.items() if path not in OF_THE_RUN}


@pytest.mark.parametrize("kind", ["qwen2", "llama", "phi3"])
def test_the_command_makes_all_files_once(erckit, folder, kind):
    before = files_of(folder / "talk")
    planned = erckit(kind, "--dry-run")
    assert [line.split(":")[0] for line in planned] == list(STAGES)
    assert planned[-1].startswith("report: would run, ")
    assert files_of(folder / "talk") == before

    said = erckit(kind)
    assert [line.split(":")[0] for line in said if not line.startswith("  ")] == list(STAGES)
    assert not said[-1].endswith("up to date")
    files = files_of(folder / "talk")
    assert files.keys() == expected_files((1,))

    up_to_date = [f"{name}: up to date" for name in STAGES]
    assert erckit(kind, "--dry-run") == up_to_date
    assert files_of(folder / "talk") == files
    assert erckit(kind) == up_to_date
    assert without_files_of_the_run(files_of(folder / "talk")) == without_files_of_the_run(files)
    check_numbers(folder / "talk" / "seed-1", said)


def check_numbers(home: Path, said: list[str]) -> None:
    """What is said at the end is what stands in the predictions, which answer every utterance."""
    metrics = json.loads((home / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    for split in ASKED:
        for name, system in (("", "model"), (".oracle", "gold history")):
            found = read_predictions(home / "predict" / f"{split}{name}.jsonl", EMORYNLP)
            dialogues = read_dialogues(home.parent / "ingest" / f"dialogues.{split}.jsonl", EMORYNLP)
            assert [(p.dialogue, p.turn, p.utterance, p.speaker, p.text, p.gold) for p in found] == [
                (dialogue.id, turn, u.id, u.speaker, u.text, u.label)
                for dialogue in dialogues
                for turn, u in enumerate(dialogue.utterances)
            ]
            assert {p.oracle for p in found} == {system != "model"}
            assert all(abs(sum(p.probabilities.values()) - 1) < 1e-4 for p in found)
            score = 100 * f1_score([p.gold for p in found], [p.label for p in found], average="weighted")
            assert metrics["splits"][split]["systems"][system]["w_f1"] == pytest.approx(score)
    assert set(metrics["splits"]["test"]["systems"]) == {"model", "gold history", *SYSTEMS}
    told = next(match for line in said if (match := re.match(r"evaluate: test W-F1 ([\d.]+) ", line)))
    assert float(told[1]) == pytest.approx(metrics["splits"]["test"]["systems"]["model"]["w_f1"], abs=0.005)


def test_several_seeds_share_all_but_what_is_random(erckit, folder):
    erckit("phi3")
    moved = folder / "moved"
    shutil.copytree(folder / "talk", moved)  # a run folder may move, and stays up to date
    before = files_of(moved)
    said = erckit("phi3", "--set", "name=moved", "--seeds", "2")

    done = [line.split(":")[0] for line in said if not line.endswith("up to date") and not line.startswith("  ")]
    assert done == [*(f"{name} (seed 2)" for name, stage in STAGES.items() if stage.seeded), "report"]
    after = files_of(moved)
    assert after.keys() == expected_files((1, 2))
    kept = {path for path in before if not path.startswith("report/")} - OF_THE_RUN
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    adapters = [moved / f"seed-{seed}/train/adapter/adapter_model.safetensors" for seed in (1, 2)]
    assert adapters[0].read_bytes() != adapters[1].read_bytes()
