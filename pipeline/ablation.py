"""Ablation: the same run with one thing changed at a time, and what the change costs, paired by dialogue.

The variants lie in `ablation/` of the run folder (`experiments.make_variants`). One that changes nothing is the run
itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..data.files import read_json, read_json_lines, write_json, write_text
from .config import Config, load_config
from .experiments import load_variants, make_variants, write_override
from .lock import hold
from .manifest import read_manifest
from .metrics import deviate, interval, resample, weighted_f1
from .report.comparison import render_ablation
from .run import Run, run_stages
from .stages.evaluate import MODEL, count_by_seed
from .tables import format_interval, format_mean, write_table
from .yaml_text import ConfigError, parse_mapping

LAST = "evaluate"
SHIPPED = "parts"
WHOLE = "as configured"


@dataclass(frozen=True, slots=True)
class Row:
    """A variant: W-F1 in percent, means over seeds, and how far it lies above the run as configured.

    `deviation` is over seeds, None for a single one. `difference` has a 95 % interval: dialogues are resampled, the
    same ones for both, and seeds averaged. `speed` is in answers a second, the loading of the model included.
    """

    name: str
    seeds: int
    oracle: bool
    dev: float
    test: float
    deviation: float | None
    unseen: float | None
    difference: float
    low: float
    high: float
    speed: float


def shipped_variants() -> list[str]:
    return sorted(file.name.removesuffix(".yaml") for file in (files("erckit.pipeline") / "variants").iterdir())


def read_variants(name_or_path: str = SHIPPED) -> dict[str, list[str]]:
    """Return the overrides of each variant by its name, from a shipped table or a YAML file.

    Raises ConfigError for anything but names with changed keys; FileNotFoundError.
    """
    if name_or_path in shipped_variants():
        source, path = files("erckit.pipeline") / "variants" / f"{name_or_path}.yaml", f"{name_or_path}.yaml"
    elif (source := Path(name_or_path)).is_file():
        path = name_or_path
    else:
        raise FileNotFoundError(
            f"{name_or_path}: no such table of variants; expected one of {', '.join(shipped_variants())}, or a file."
        )
    values, places = parse_mapping(source.read_text(encoding="utf-8"), path)
    for name, changes in values.items():
        if not isinstance(name, str) or not isinstance(changes, dict) or not changes:
            place = places.get(str(name), path)
            raise ConfigError(f"{place}: {name}: found {changes!r}, expected changed keys, `section.key: VALUE`.")
    return {name: [write_override(key, value) for key, value in changes.items()] for name, changes in values.items()}


def ablate(
    config_name: str, overrides: Sequence[str], run: Run, variants: Mapping[str, Sequence[str]], table: str = SHIPPED
) -> list[Row]:
    """Bring the run and all its variants up to date, seed by seed, and write `ablation/TABLE.{json,md,html}`.

    Raises ConfigError where a change is no valid one, before anything runs.
    """
    config = load_config(config_name, overrides, run.seed)
    changed = load_variants(config_name, overrides, run.seed, variants)
    if not all(one.predict.test for one in (config, *changed.values())):
        raise ConfigError("predict.test is false, and variants are compared on test. Leave it out.")
    kept = {name: other for name, other in changed.items() if other != config}
    with hold(run.folder):
        run_stages(config, run, last=LAST)
        runs = {WHOLE: run, **make_variants(config, run, kept, run.folder / "ablation", LAST)}
        return _tell_rows(config, run, runs, table)


def _tell_rows(config: Config, run: Run, runs: Mapping[str, Run], table: str) -> list[Row]:
    """Return the rows of the runs, the first of which is `run`, and write their table."""

    def draw(one: Run) -> np.ndarray:
        """Return test W-F1 resampled, the mean over seeds, shape (resamples,), with the same draws for every run."""
        drawn = resample(count_by_seed(one, "test"), config.evaluate.resamples, seed=run.seeds[0])
        return weighted_f1(drawn).mean(axis=1)

    base, rows = draw(run), list[Row]()
    for name, one in runs.items():
        rows.append(_measure(name, one, rows[0] if rows else None, draw(one) - base))
    write_json(run.folder / "ablation" / f"{table}.json", [asdict(row) for row in rows])
    write_text(run.folder / "ablation" / f"{table}.md", describe_rows(rows))
    write_text(run.folder / "ablation" / f"{table}.html", render_ablation(config.name, rows))
    return rows


def describe_rows(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = []
    for row in rows:
        against = "" if row.name == WHOLE else f"{row.difference:+.2f} {format_interval((row.low, row.high), '+')}"
        unseen = "" if row.unseen is None else f"{row.unseen:.2f}"
        mark = " (oracle)" if row.oracle and "oracle" not in row.name else ""
        cells = [
            f"{row.name}{mark}",
            str(row.seeds),
            f"{row.dev:.2f}",
            format_mean(row.test, row.deviation),
            unseen,
            against,
            f"{row.speed:.1f}",
        ]
        lines.append(cells)
    head = ["variant", "seeds", "dev", "test", "unseen speakers", "against the configured", "answers/s"]
    return write_table(head, lines)


def _measure(name: str, one: Run, whole: Row | None, drawn: np.ndarray) -> Row:
    """Return the row of a run; `drawn` is by how much its resampled scores lie above those of the run as configured."""
    runs = one.of_each_seed()
    metrics = [read_json(run.path("evaluate", "metrics.json"))["splits"] for run in runs]
    test, dev = ([found[split]["systems"][MODEL] for found in metrics] for split in ("test", "dev"))
    scores = [model["w_f1"] for model in test]
    unseen = [model["groups"]["speaker"].get("unseen") for model in test]
    mean, (low, high) = float(np.mean(scores)), interval(drawn)
    return Row(
        name=name,
        seeds=len(scores),
        oracle=any(model["oracle"] for model in test),
        dev=float(np.mean([model["w_f1"] for model in dev])),
        test=mean,
        deviation=deviate(scores),
        unseen=None if None in unseen else float(np.mean([group["w_f1"] for group in unseen])),
        difference=mean - whole.test if whole else 0.0,
        low=low,
        high=high,
        speed=float(np.mean([_count_answers(run) / read_manifest(run.path("predict"))["seconds"] for run in runs])),
    )


def _count_answers(run: Run) -> int:
    """Return how many answers the predict stage wrote, of oracles too."""
    return sum(1 for path in run.path("predict").glob("*.jsonl") for _ in read_json_lines(path))
