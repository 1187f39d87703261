"""Sweep: every combination of some settings, and the best of them on dev; none of them answers test.

The variants lie in `sweep/` of the run folder (`experiments.make_variants`); the chosen one can be run on there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..data.files import write_json, write_text
from .config import Config, dump_config, load_config
from .experiments import SHARED, load_variants, make_variants, name_folder, write_override
from .lock import hold
from .metrics import deviate, interval, resample, weighted_f1
from .run import Run
from .stages import STAGES
from .stages.evaluate import count_by_seed
from .tables import format_interval, format_mean, write_table
from .yaml_text import ConfigError, parse_mapping

LAST = "predict"
SECTIONS = tuple(dict.fromkeys(part for name in (*SHARED, LAST) for part in STAGES[name].sections if part != "data"))
"""What decides the answers to a corpus."""
OWN = ("predict.test", "predict.oracle")
"""What a sweep sets itself: dev alone is answered, and once."""


@dataclass(frozen=True, slots=True)
class Row:
    """A combination: its settings by key, dev W-F1 in percent, the mean over seeds, and how far below the best it is.

    `deviation` is over seeds, None for a single one. `difference` has a 95 % interval: dialogues are resampled, the
    same ones for both, and seeds averaged.
    """

    settings: Mapping[str, Any]
    seeds: int
    dev: float
    deviation: float | None
    difference: float
    interval: tuple[float, float]


def read_grid(path: Path) -> dict[str, list[Any]]:
    """Return the values of each key from a YAML file. Raises ConfigError for anything but keys with lists of values."""
    values, places = parse_mapping(path.read_text(encoding="utf-8"), str(path))
    if not values:
        raise ConfigError(f"{path}:1: found no key, expected keys with lists of values, `section.key: [VALUE, VALUE]`.")
    for key, choices in values.items():
        place = places.get(str(key), path)
        if str(key).partition(".")[0] not in SECTIONS or key in OWN:
            raise ConfigError(
                f"{place}: {key}: cannot be swept, expected keys of {', '.join(SECTIONS)}, without "
                f"{' and '.join(OWN)}. Leave it out; for several seeds use --seeds."
            )
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{place}: {key}: found {choices!r}, expected a list of values, such as [1, 2].")
    return values


def sweep(
    config_name: str, overrides: Sequence[str], run: Run, grid: Mapping[str, Sequence[Any]], table: str
) -> list[Row]:
    """Answer dev with every combination, seed by seed, and write `sweep/TABLE.json`, `.md` and `.chosen.yaml`.

    Returns the rows, the best first. Raises ConfigError before anything runs, where a combination is no valid
    configuration, or is told gold emotions.
    """
    config, settings = load_config(config_name, overrides, run.seed), _combine(grid)
    changes = {name: [write_override(key, value) for key, value in one.items()] for name, one in settings.items()}
    own = [write_override(key, False) for key in OWN]
    variants = {name: [*changed, *own] for name, changed in changes.items()}
    loaded = load_variants(config_name, overrides, run.seed, variants)
    for name, one in loaded.items():
        if one.is_oracle:
            raise ConfigError(f"{name}: it is told gold emotions, and an oracle is nothing to choose. Leave it out.")
    with hold(run.folder):
        runs = make_variants(config, run, loaded, run.folder / "sweep", LAST)
    confusions = {name: count_by_seed(one, "dev") for name, one in runs.items()}
    scores = {name: weighted_f1(counts.sum(axis=0)) for name, counts in confusions.items()}
    drawn = {
        name: weighted_f1(resample(counts, config.evaluate.resamples, run.seeds[0])).mean(axis=1)
        for name, counts in confusions.items()
    }
    names = sorted(scores, key=lambda name: scores[name].mean(), reverse=True)  # stable: of equals the first
    best = names[0]
    rows = [
        Row(
            settings=settings[name],
            seeds=len(scores[name]),
            dev=float(scores[name].mean()),
            deviation=deviate(scores[name]),
            difference=float(scores[name].mean() - scores[best].mean()),
            interval=interval(drawn[name] - drawn[best]),
        )
        for name in names
    ]
    chosen = load_config(config_name, [*overrides, *changes[best], f"name={name_folder(best)}"], run.seed)
    _write(run.folder / "sweep", table, rows, chosen)
    return rows


def describe_rows(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        [
            *(str(value) for value in row.settings.values()),
            str(row.seeds),
            format_mean(row.dev, row.deviation),
            f"{row.difference:+.2f} {format_interval(row.interval, '+')}" if place else "",
        ]
        for place, row in enumerate(rows)
    ]
    return write_table([*rows[0].settings, "seeds", "dev", "against the best"], lines)


def _combine(grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Return the settings of each combination by its name, the last key changing fastest."""
    combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return {", ".join(write_override(key, value) for key, value in one.items()): one for one in combinations}


def _write(folder: Path, table: str, rows: Sequence[Row], chosen: Config) -> None:
    head = f"# Chosen by `erckit sweep` of {len(rows)}: dev W-F1 {format_mean(rows[0].dev, rows[0].deviation)}.\n"
    write_json(folder / f"{table}.json", [asdict(row) for row in rows])
    texts = {f"{table}.md": describe_rows(rows), f"{table}.chosen.yaml": head + dump_config(chosen)}
    for name, text in texts.items():
        write_text(folder / name, text)
