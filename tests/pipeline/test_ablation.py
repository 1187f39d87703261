"""Ablation: variants are runs of their own, made once, and compared in pairs."""

import re
from pathlib import Path

import numpy as np
import pytest
from erckit.data.files import read_json
from erckit.pipeline.ablation import WHOLE, Row, Variant, ablate, describe_rows, read_variants, shipped_variants
from erckit.pipeline.artefacts import load_labels
from erckit.pipeline.config import load_config, shipped_configs
from erckit.pipeline.manifest import MANIFEST
from erckit.pipeline.predictions import ASKED, by_dialogue, read_predictions
from erckit.pipeline.report.comparison import render_ablation
from erckit.pipeline.run import Run
from erckit.pipeline.yaml_text import ConfigError
from sklearn.metrics import f1_score

VARIANTS = {
    "without recent emotions": Variant(["prompts.recent_emotions=none"], against="the same"),
    "the same": Variant(["train.epochs=1"]),
}
REMEMBERING = {
    "one utterance + memory": Variant(
        [
            "prompts.history=window",
            "prompts.window=1",
            "predict.memory=true",
            "memory.window=1",
            "memory.layers=1",
        ],
        against="one utterance",
    ),
    "one utterance": Variant(["prompts.history=window", "prompts.window=1"]),
}


def score(paths: list[Path], run: Run, dialogues: np.ndarray) -> float:
    """W-F1 of the dialogues given by place, repeated as often as given, the mean over seeds, by scikit-learn."""
    scores = []
    for path in paths:
        groups = list(by_dialogue(read_predictions(path, load_labels(run))).values())
        answers = [answer for place in dialogues for answer in groups[place]]
        gold, found = [a.gold for a in answers], [a.label for a in answers]
        scores.append(100 * f1_score(gold, found, average="weighted", labels=list(load_labels(run)), zero_division=0))
    return float(np.mean(scores))


def test_variants_are_made_once_and_compared_dialogue_by_dialogue(begin, tiny_config, capsys):
    _, run = begin()
    run = Run(run.folder, 1, (1, 2))
    rows = ablate(str(tiny_config), [], run, VARIANTS)
    assert [row.name for row in rows] == [WHOLE, "without recent emotions"]  # what changes nothing is the run itself
    shared = {path.name for path in (run.folder / "ablation" / "without-recent-emotions").iterdir()}
    assert shared >= {"ingest", "profiles", "baselines", "prompts", "seed-1", "seed-2"}
    printed = capsys.readouterr().out
    assert printed.count("ingest: up to date") == 2 and printed.count("prompts: up to date") == 1

    folder = run.folder / "ablation" / "without-recent-emotions"
    whole, other = ([home / f"seed-{seed}/predict/test.jsonl" for seed in (1, 2)] for home in (run.folder, folder))
    everything = np.arange(len(by_dialogue(read_predictions(whole[0], load_labels(run)))))
    row = rows[1]
    assert row.test == pytest.approx(score(other, run, everything))
    assert row.difference == pytest.approx(score(other, run, everything) - score(whole, run, everything))
    resamples = load_config(str(tiny_config)).evaluate.resamples
    share = np.full(len(everything), 1 / len(everything))
    counts = np.random.default_rng(1).multinomial(len(everything), share, resamples)
    drawn = [np.repeat(everything, count) for count in counts]
    differences = [score(other, run, some) - score(whole, run, some) for some in drawn]
    assert (row.low, row.high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])))
    seeds = [
        read_json(folder / f"seed-{s}/evaluate/metrics.json")["splits"]["test"]["systems"]["model"] for s in (1, 2)
    ]
    assert row.deviation == pytest.approx(np.std([seed["w_f1"] for seed in seeds], ddof=1))

    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob(MANIFEST)}
    assert ablate(str(tiny_config), [], run, VARIANTS) == rows
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob(MANIFEST)} == before
    assert (run.folder / "ablation" / "parts.md").read_text() == describe_rows(rows)
    assert (run.folder / "ablation" / "parts.html").read_text() == render_ablation("talk", rows)


def test_variants_that_differ_only_in_their_answers_share_a_training(begin, tiny_config):
    _, run = begin()
    rows = ablate(str(tiny_config), [], run, REMEMBERING, "memory")
    assert [row.name for row in rows] == [WHOLE, *REMEMBERING]
    home = run.folder / "ablation"
    manifests = [
        (home / name / "seed-1" / "train" / MANIFEST).read_bytes() for name in ("one-utterance", "one-utterance-memory")
    ]
    assert manifests[0] == manifests[1]  # with its time of day: one training
    assert manifests[0] != (run.folder / "seed-1" / "train" / MANIFEST).read_bytes()
    predicted = read_json(home / "one-utterance-memory" / "seed-1" / "predict" / MANIFEST)
    answered = sum(
        len(read_predictions(home / f"one-utterance/seed-1/predict/{s}.jsonl", load_labels(run))) for s in ASKED
    )
    assert rows[1].speed == pytest.approx(answered / predicted["seconds"])
    whole, remembering, alone = rows  # compared with one that stands below it
    assert remembering.difference == pytest.approx(remembering.test - alone.test)
    assert alone.difference == pytest.approx(alone.test - whole.test) and alone.against == WHOLE
    assert min(remembering.low, 0) <= remembering.difference <= max(remembering.high, 0)
    assert (home / "memory.md").read_text() == describe_rows(rows)


@pytest.mark.parametrize("table", shipped_variants())
def test_the_shipped_variants_change_what_the_shipped_configurations_have(table):
    variants = read_variants(table)
    for name in shipped_configs():
        for variant in variants.values():
            load_config(name, variant.changes)
    assert variants


def test_each_row_with_a_memory_stands_below_the_same_one_with_an_empty_one():
    table = read_variants("memory")
    variants = {name: dict(change.split("=") for change in variant.changes) for name, variant in table.items()}
    remembering = [name for name in variants if "memory of" in name or name.endswith("+ memory")]
    for name in remembering:
        plain = {key: value for key, value in variants[name].items() if key != "memory.scope"}
        assert variants[table[name].against] == plain | {"memory.content": '"none"'}
        assert plain["memory.content"] != '"none"'
    assert len(remembering) == 15


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="part: no such table of variants; expected one of memory, parts, or a"):
        read_variants("part")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 3\n", "variants.yaml:1: a: found 3, expected changed keys, `section.key: VALUE`."),
        ("a: {against: as configured}\n", "variants.yaml:1: a: found {'against': 'as configured'}, expected changed"),
        ("a: {seed: 1}\nb:\n  seed: 1\n  against: c\n", "variants.yaml:4: b: found `against: c`, expected the name of"),
        ("a: {}\n", "variants.yaml:1: a: found {}, expected changed keys"),
        ("4: {seed: 1}\n", "variants.yaml:1: 4: found {'seed': 1}, expected changed keys"),
        ("on: {seed: 1}\n", "True: found {'seed': 1}, expected changed keys"),
        ("- a\n", "variants.yaml:1: found list, expected a mapping."),
    ],
)
def test_a_table_of_variants_that_cannot_be_is_refused(tmp_path, text, message):
    (tmp_path / "variants.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_variants(str(tmp_path / "variants.yaml"))


def test_a_change_that_is_none_is_refused_before_anything_runs(begin, tiny_config):
    _, run = begin()
    with pytest.raises(ConfigError, match="train.epoch: unknown key, did you mean train.epochs?"):
        ablate(str(tiny_config), [], run, {"more": Variant(["train.epoch=2"])})
    with pytest.raises(ConfigError, match="more: it changes the corpus, and variants are compared on the same one."):
        ablate(str(tiny_config), [], run, {"more": Variant(["data.path=sample"])})
    with pytest.raises(ConfigError, match="A, b: its folder would be that of 'a b'. Rename one of them."):
        ablate(str(tiny_config), [], run, {"a b": Variant(["train.epochs=2"]), "A, b": Variant(["train.epochs=3"])})
    with pytest.raises(ConfigError, match="predict.test is false, and variants are compared on test. Leave it out."):
        ablate(str(tiny_config), [], run, {"more": Variant(["predict.test=false"])})
    assert not (run.folder / "ablation").exists()


def test_a_row_says_how_many_seeds_and_how_sure():
    rows = [
        Row(WHOLE, WHOLE, 1, False, 50.0, 40.0, None, None, 0.0, 0.0, 0.0, 30.0),
        Row("told", WHOLE, 1, True, 60.0, 50.0, None, None, 10.0, 8.0, 12.0, 31.25),
        Row("less", WHOLE, 2, False, 49.0, 39.0, 1.234, 20.0, -1.0, -3.0, 1.0, 9.96),
    ]
    assert cells_of(rows)[2:] == [
        ["as configured", "1", "50.00", "40.00", "", "", "30.0"],
        ["told (oracle)", "1", "60.00", "50.00", "", "+10.00 [+8.00, +12.00]", "31.2"],
        ["less", "2", "49.00", "39.00 ± 1.23", "20.00", "-1.00 [-3.00, +1.00]", "10.0"],
    ]
    cells = cells_of([*rows, Row("least", "less", 1, False, 49.0, 38.0, None, None, -1.0, -2.0, 0.0, 9.0)])
    assert cells[0][5:7] == ["difference", "against"]
    assert [row[6] for row in cells[2:]] == ["", WHOLE, WHOLE, "less"]


def cells_of(rows: list[Row]) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in describe_rows(rows).splitlines()]
