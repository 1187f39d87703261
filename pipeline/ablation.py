"""Ablation: the same run with one thing changed at a time, and what the change costs, paired by dialogue.

Each variant is a run of its own in `ablation/` of the run folder, made from the same stages: what is up to date is
skipped, what two variants have in common is made once, and a command that is killed goes on where it stopped. A variant
that changes nothing is the run itself.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..data.files import read_json, read_json_lines, replace_atomically, write_json
from .artefacts import load_labels
from .config import Config, load_config
from .console import say
from .lock import hold
from .manifest import MANIFEST
from .metrics import interval, resample, weighted_f1
from .predictions import read_predictions
from .run import Run, run_stages
from .stages import STAGES
from .stages.evaluate import MODEL, count_by_dialogue
from .yaml_text import ConfigError, parse_mapping

LAST, RESAMPLES = "evaluate", 2000
SHIPPED = "parts"
SHARED = ("ingest", "profiles", "baselines", "prompts", "train")
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

    Raises ConfigError for anything but names with changed keys, and for names that would share a folder;
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
    folders: dict[str, str] = {}
    for name, changes in values.items():
        if not isinstance(name, str) or not isinstance(changes, dict) or not changes:
            place = places.get(str(name), path)
            raise ConfigError(f"{place}: {name}: found {changes!r}, expected changed keys, `section.key: VALUE`.")
        if (other := folders.setdefault(_folder_name(name), name)) != name:
            raise ConfigError(f"{places[name]}: {name}: its folder would be that of {other!r}. Rename one of them.")
    return {
        name: [f"{key}={json.dumps(value, default=str)}" for key, value in changes.items()]
        for name, changes in values.items()
    }


def ablate(
    config_name: str, overrides: Sequence[str], run: Run, variants: Mapping[str, Sequence[str]], table: str = SHIPPED
) -> list[Row]:
    """Bring the run and all its variants up to date, seed by seed, and write `ablation/TABLE.json` and `TABLE.md`.

    Raises ConfigError where a change is no valid one, before anything runs.
    """
    config = load_config(config_name, overrides, run.seed)
    changed = {name: load_config(config_name, [*overrides, *changes], run.seed) for name, changes in variants.items()}
    for name, other in changed.items():
        if other.data != config.data:
            raise ConfigError(
                f"{name}: it changes the corpus, and variants are compared on the same one. Leave it out."
            )
    kept = {name: other for name, other in changed.items() if other != config}
    with hold(run.folder):
        rows = _compare(config, run, kept)
        write_json(run.folder / "ablation" / f"{table}.json", [asdict(row) for row in rows])
        with replace_atomically(run.folder / "ablation" / f"{table}.md") as temporary:
            temporary.write_text(write_table(rows), encoding="utf-8")
    return rows


def _compare(config: Config, run: Run, variants: Mapping[str, Config]) -> list[Row]:
    """Bring the run and its variants up to date. Returns their rows."""
    run_stages(config, run, last=LAST)
    runs, made = {WHOLE: run}, [(config, run)]
    for name, other in variants.items():
        say(f"{name}:")
        runs[name] = Run(run.folder / "ablation" / _folder_name(name), run.seed, run.seeds)
        _share_stages(made, other, runs[name])
        run_stages(other, runs[name], last=LAST)
        made.append((other, runs[name]))
    base, rows = _resample(run), list[Row]()
    for name, one in runs.items():
        rows.append(_measure(name, one, rows[0] if rows else None, _resample(one) - base))
    return rows


def write_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    head = ["variant", "seeds", "dev", "test", "unseen speakers", "against the configured", "answers/s"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        spread = f" ± {row.deviation:.2f}" if row.deviation is not None else ""
        against = "" if row.name == WHOLE else f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
        unseen = "" if row.unseen is None else f"{row.unseen:.2f}"
        mark = " (oracle)" if row.oracle and "oracle" not in row.name else ""
        cells = [
            f"{row.name}{mark}",
            str(row.seeds),
            f"{row.dev:.2f}",
            f"{row.test:.2f}{spread}",
            unseen,
            against,
            f"{row.speed:.1f}",
        ]
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _measure(name: str, one: Run, whole: Row | None, drawn: np.ndarray) -> Row:
    """Return the row of a run; `drawn` is by how much its resampled scores lie above those of the run as configured."""
    runs = one.of_each_seed()
    metrics = [read_json(run.path("evaluate", "metrics.json"))["splits"] for run in runs]
    test, dev = ([found[split]["systems"][MODEL] for found in metrics] for split in ("test", "dev"))
    scores, unseen = [model["w_f1"] for model in test], [model["w_f1_unseen"] for model in test]
    mean, (low, high) = float(np.mean(scores)), interval(drawn)
    return Row(
        name=name,
        seeds=len(scores),
        oracle=any(model["oracle"] for model in test),
        dev=float(np.mean([model["w_f1"] for model in dev])),
        test=mean,
        deviation=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        unseen=None if None in unseen else float(np.mean(unseen)),
        difference=mean - whole.test if whole else 0.0,
        low=low,
        high=high,
        speed=float(
            np.mean([_count_answers(run) / read_json(run.path("predict", MANIFEST))["seconds"] for run in runs])
        ),
    )


def _resample(one: Run) -> np.ndarray:
    """Return test W-F1 resampled, the mean over seeds, shape (RESAMPLES,), with the same draws for every run."""
    labels, scores = load_labels(one), []
    for run in one.of_each_seed():
        confusions = count_by_dialogue(read_predictions(run.path("predict", "test.jsonl"), labels), labels)
        scores.append(weighted_f1(resample(confusions, RESAMPLES, seed=one.seeds[0])))
    return np.mean(scores, axis=0)


def _count_answers(run: Run) -> int:
    """Return how many answers the predict stage wrote, of oracles too."""
    return sum(1 for path in run.path("predict").glob("*.jsonl") for _ in read_json_lines(path))


def _share_stages(made: Sequence[tuple[Config, Run]], config: Config, variant: Run) -> None:
    """Copy what another run has in common with a variant, but for what is there; what it has not is made anew.

    It is the first run with the same training, or else the first with the same prompts, or the run as configured.
    """

    def common(donor: tuple[Config, Run]) -> int:
        """Return how many stages have the same settings, up to the first that has not."""
        alike = [
            all(getattr(donor[0], section) == getattr(config, section) for section in STAGES[name].sections)
            for name in SHARED
        ]
        return alike.index(False) if False in alike else len(alike)

    donor = max(made, key=common)
    for one in variant.of_each_seed():
        for name in SHARED[: common(donor)]:
            source, target = donor[1].with_seed(one.seed).path(name), one.path(name)
            if source.is_dir() and not target.exists():
                half = target.with_name(f".{name}")
                shutil.rmtree(half, ignore_errors=True)  # of a process that was killed
                shutil.copytree(source, half)
                half.rename(target)


def _folder_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
