"""A sweep answers dev alone, chooses there, and goes on where it stopped; the chosen settings can be run."""

import re
from pathlib import Path

import numpy as np
import pytest
from erckit.data.files import read_json
from erckit.pipeline.artefacts import load_labels
from erckit.pipeline.cli import main
from erckit.pipeline.config import load_config
from erckit.pipeline.manifest import MANIFEST
from erckit.pipeline.predictions import read_predictions
from erckit.pipeline.run import Run
from erckit.pipeline.sweep import describe_rows, read_grid, sweep
from erckit.pipeline.yaml_text import ConfigError
from sklearn.metrics import f1_score

GRID = {"train.learning_rate": [1e-4, 0.02], "predict.conversations": [1, 4]}


def score(path: Path, run: Run) -> float:
    answers = read_predictions(path, load_labels(run))
    return 100 * f1_score([a.gold for a in answers], [a.label for a in answers], average="weighted", zero_division=0)


def test_a_sweep_chooses_on_dev_and_never_answers_test(begin, tiny_config, capsys):
    _, run = begin()
    run = Run(run.folder, 1, (1, 2))
    rows = sweep(str(tiny_config), ["predict.oracle=true"], run, GRID, "grid")

    assert not list(run.folder.rglob("predict/test*")) and not list(run.folder.rglob("predict/*.oracle.jsonl"))
    home, scores = run.folder / "sweep", {}
    for rate in ("0-0001", "0-02"):
        for conversations in (1, 4):
            folder = home / f"train-learning-rate-{rate}-predict-conversations-{conversations}"
            paths = [folder / f"seed-{seed}" / "predict" / "dev.jsonl" for seed in (1, 2)]
            scores[float(rate.replace("-", ".", 1)), conversations] = [score(path, run) for path in paths]
    means = {key: np.mean(found) for key, found in scores.items()}
    found = [tuple(row.settings.values()) for row in rows]
    assert found == sorted(means, key=lambda key: -round(means[key], 9))  # of equals, the first of the grid
    assert [row.dev for row in rows] == pytest.approx([means[key] for key in found])
    assert [row.deviation for row in rows] == pytest.approx([np.std(scores[key], ddof=1) for key in found])
    assert [row.difference for row in rows] == pytest.approx([means[key] - means[found[0]] for key in found])
    assert rows[0].interval == (0.0, 0.0) and rows[0].seeds == 2
    assert (home / "grid.md").read_text() == describe_rows(rows) and len(read_json(home / "grid.json")) == 4

    trained = [path.read_bytes() for path in home.glob("*/seed-1/train/manifest.json")]
    assert len(set(trained)) == 2  # with its time of day: what only answers differ in shares a training
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob(MANIFEST)}
    table, options = run.folder / "grid.yaml", ["--set", "predict.oracle=true", "--seeds", "2"]
    table.write_text("train.learning_rate: [1e-4, 0.02]\npredict.conversations: [1, 4]\n")
    capsys.readouterr()
    assert main(["sweep", str(tiny_config), str(table), "--runs", str(run.folder.parent), *options]) == 0
    printed = capsys.readouterr().out
    command = f"erckit run {home}/grid.chosen.yaml --runs {home} --seeds 2"
    assert printed.endswith(f"{describe_rows(rows)}\nTest with the best: {command}\n")
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob(MANIFEST)} == before

    chosen = load_config(str(home / "grid.chosen.yaml"))
    assert (chosen.train.learning_rate, chosen.predict.conversations) == found[0]
    assert chosen.predict.test and chosen.predict.oracle and chosen.prompts == load_config(str(tiny_config)).prompts
    chosen_run = ["run", str(home / "grid.chosen.yaml"), "--runs", str(home), "--to", "evaluate"]
    assert main([*chosen_run, "--set", "predict.test=false"]) == 0  # who never looks at test can evaluate dev
    assert re.search(r"^evaluate: dev W-F1 [\d.]+ \[", capsys.readouterr().out, flags=re.MULTILINE)
    assert read_json(home / chosen.name / "seed-1" / "evaluate" / "metrics.json")["splits"].keys() == {"dev"}
    assert main([*chosen_run, "--seeds", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert {"train (seed 1): up to date", "train (seed 2): up to date"} <= set(printed)
    assert [path.parts[-4] for path in home.rglob("predict/test.jsonl")] == [chosen.name] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.epochs: 3\n", "grid.yaml:1: train.epochs: found 3, expected a list of values, such as [1, 2]."),
        ("train.epochs: []\n", "grid.yaml:1: train.epochs: found [], expected a list"),
        ("train: {epochs: [1, 2]}\n", "grid.yaml:1: train: found {'epochs': [1, 2]}, expected a list of values"),
        ("seed: [1, 2]\n", "grid.yaml:1: seed: cannot be swept, expected keys of profiles, prompts, model, train, "
         "predict, memory, without predict.test and predict.oracle. Leave it out; for several seeds use --seeds."),
        ("train.epochs: [1]\npredict.test: [true]\n", "grid.yaml:2: predict.test: cannot be swept"),
        ("data.path: [a, b]\n", "grid.yaml:1: data.path: cannot be swept"),
        ("3: [1]\n", "grid.yaml:1: 3: cannot be swept"),
        ("{}\n", "grid.yaml:1: found no key, expected keys with lists of values"),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_is_refused_by_line(tmp_path, text, message):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_grid(tmp_path / "grid.yaml")


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"train.epoch": [1]}, "train.epoch: unknown key, did you mean train.epochs?"),
        ({"train.epochs": [1, 0]}, "train.epochs: found 0, expected greater than or equal to 1"),
        (
            {"prompts.recent_emotions": ["none", "gold"]},
            'prompts.recent_emotions="gold": it is told gold emotions, and an',
        ),
    ],
)
def test_a_combination_that_cannot_be_is_refused_before_anything_runs(begin, tiny_config, grid, message):
    _, run = begin()
    with pytest.raises(ConfigError, match=re.escape(message)):
        sweep(str(tiny_config), [], run, grid, "grid")
    assert not (run.folder / "sweep").exists()
