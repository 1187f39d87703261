"""Ablation: the same run with one thing changed at a time, and what the change costs, paired by dialogue.

The variants lie in `ablation/` of the run folder (`experiments.make_variants`). One that changes nothing is the run
itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

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
WHOLE, AGAINST = "as configured", "against"


@dataclass(frozen=True, slots=True)
class Variant:
    """What is changed, as `--set` takes it, and the name of the variant to compare with."""

    changes: list[str]
    against: str = WHOLE


@dataclass(frozen=True, slots=True)
class Row:
    """A variant: W-F1 in percent, means over seeds, and how far it lies above the one that it is compared with.

    `deviation` is over seeds, None for a single one. `difference` has a 95 % interval: dialogues are resampled, the
    same ones for both, and seeds averaged. `speed` is in answers a second, the loading of the model included.
    """

    name: str
    against: str
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


def read_variants(name_or_path: str = SHIPPED) -> dict[str, Variant]:
    """Return each variant by its name, from a shipped table or a YAML file.

    Raises ConfigError for anything but names with changed keys, and for a comparison with none of them;
    FileNotFoundError.
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
    variants = dict[str, Variant]()
    for name, changes in values.items():
        if not isinstance(name, str) or not isinstance(changes, dict) or not changes.keys() - {AGAINST}:
            place = places.get(str(name), path)
            raise ConfigError(f"{place}: {name}: found {changes!r}, expected changed keys, `section.key: VALUE`.")
        against = changes.pop(AGAINST, WHOLE)
        if against not in (WHOLE, *values):
            raise ConfigError(
                f"{places.get(f'{name}.{AGAINST}', path)}: {name}: found `{AGAINST}: {against}`, expected the name of "
                "a variant of this table."
            )
        variants[name] = Variant([write_override(key, value) for key, value in changes.items()], against)
    return variants


def ablate(
    config_name: str, overrides: Sequence[str], run: Run, variants: Mapping[str, Variant], table: str = SHIPPED
) -> list[Row]:
    """Bring the run and all its variants up to date, seed by seed, and write `ablation/TABLE.{json,md,html}`.

    Raises ConfigError where a change is no valid one, before anything runs.
    """
    config = load_config(config_name, overrides, run.seed)
    changes = {name: variant.changes for name, variant in variants.items()}
    changed = load_variants(config_name, overrides, run.seed, changes)
    if not all(one.predict.test for one in (config, *changed.values())):
        raise ConfigError("predict.test is false, and variants are compared on test. Leave it out.")
    against = {name: variant.against for name, variant in variants.items()}
    kept = {name: other for name, other in changed.items() if other != config}
    with hold(run.folder):
        run_stages(config, run, last=LAST)
        runs = {WHOLE: run, **make_variants(config, run, kept, run.folder / "ablation", LAST)}
        return _tell_rows(config, run, runs, against, table)


def _tell_rows(config: Config, run: Run, runs: Mapping[str, Run], against: Mapping[str, str], table: str) -> list[Row]:
    """Return the rows of the runs, the first of which is `run`, and write their table."""

    def draw(one: Run) -> np.ndarray:
        """Return test W-F1 resampled, the mean over seeds, shape (resamples,), with the same draws for every run."""
        drawn = resample(count_by_seed(one, "test"), config.evaluate.resamples, seed=run.seeds[0])
        return weighted_f1(drawn).mean(axis=1)

    drawn, rows = {name: draw(one) for name, one in runs.items()}, list[Row]()
    for name, one in runs.items():
        other = against.get(name, WHOLE)
        other = other if other in runs else WHOLE  # what changes nothing is the run itself
        rows.append(_measure(name, one, other, runs[other], drawn[name] - drawn[other]))
    write_json(run.folder / "ablation" / f"{table}.json", [asdict(row) for row in rows])
    write_text(run.folder / "ablation" / f"{table}.md", describe_rows(rows))
    write_text(run.folder / "ablation" / f"{table}.html", render_ablation(config.name, rows))
    return rows


def describe_rows(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines, several = [], any(row.against != WHOLE for row in rows)
    for row in rows:
        difference = "" if row.name == WHOLE else f"{row.difference:+.2f} {format_interval((row.low, row.high), '+')}"
        unseen = "" if row.unseen is None else f"{row.unseen:.2f}"
        mark = " (oracle)" if row.oracle and "oracle" not in row.name else ""
        cells = [
            f"{row.name}{mark}",
            str(row.seeds),
            f"{row.dev:.2f}",
            format_mean(row.test, row.deviation),
            unseen,
            difference,
            *([row.against if difference else ""] if several else []),
            f"{row.speed:.1f}",
        ]
        lines.append(cells)
    compared = ["difference", "against"] if several else ["against the configured"]
    return write_table(["variant", "seeds", "dev", "test", "unseen speakers", *compared, "answers/s"], lines)


def _measure(name: str, one: Run, against: str, other: Run, drawn: np.ndarray) -> Row:
    """Return the row of a run; `drawn` is by how much its resampled scores lie above those of the other run."""
    runs, test, dev = one.of_each_seed(), _read_results(one, "test"), _read_results(one, "dev")
    scores = [model["w_f1"] for model in test]
    unseen = [model["groups"]["speaker"].get("unseen") for model in test]
    mean, (low, high) = float(np.mean(scores)), interval(drawn)
    return Row(
        name=name,
        against=against,
        seeds=len(scores),
        oracle=any(model["oracle"] for model in test),
        dev=float(np.mean([model["w_f1"] for model in dev])),
        test=mean,
        deviation=deviate(scores),
        unseen=None if None in unseen else float(np.mean([group["w_f1"] for group in unseen])),
        difference=mean - float(np.mean([model["w_f1"] for model in _read_results(other, "test")])),
        low=low,
        high=high,
        speed=float(np.mean([_count_answers(run) / read_manifest(run.path("predict"))["seconds"] for run in runs])),
    )


def _read_results(run: Run, split: str) -> list[dict[str, Any]]:
    """Return the metrics of the model with each seed."""
    metrics = [read_json(one.path("evaluate", "metrics.json")) for one in run.of_each_seed()]
    return [found["splits"][split]["systems"][MODEL] for found in metrics]


def _count_answers(run: Run) -> int:
    """Return how many answers the predict stage wrote, of oracles too."""
    return sum(1 for path in run.path("predict").glob("*.jsonl") for _ in read_json_lines(path))
