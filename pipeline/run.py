"""The run folder: which stages are fresh, and running those that are not."""

import importlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import __version__
from ..data.errors import DataError
from ..data.files import hash_file, hash_record, write_sealed, write_text
from .config import Config, dump_config
from .console import format_memory, format_seconds, say
from .lock import RunError, hold
from .manifest import (
    MANIFEST,
    STARTED,
    begin_folder,
    explain_difference,
    find_change,
    list_outputs,
    read_manifest,
    recorded_outputs,
)
from .measure import package_versions, peak_gpu_memory_mib, peak_memory_mib, reset_peak_memory
from .processes import count_processes, is_helper
from .stages import STAGES

INERT = {"train": {"report_to"}}
"""By section, the keys that change no artefact: a stage is not run again for them."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder as one seed sees it; `seeds` are all seeds of this invocation, which the report covers."""

    folder: Path
    seed: int
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.seeds:
            object.__setattr__(self, "seeds", (self.seed,))

    def path(self, stage: str, *parts: str) -> Path:
        """A path in the folder of a stage: `<stage>/` where all seeds share it, else `seed-<N>/<stage>/`."""
        home = self.folder / f"seed-{self.seed}" if STAGES[stage].seeded else self.folder
        return home.joinpath(stage, *parts)

    def with_seed(self, seed: int) -> "Run":
        return replace(self, seed=seed)

    def of_each_seed(self) -> list["Run"]:
        return [self.with_seed(seed) for seed in self.seeds]

    def find_seeds(self) -> list[int]:
        """Return all seeds that have a folder, in order; one of another name, such as a copy kept aside, has none."""
        found = (path.name.removeprefix("seed-") for path in self.folder.glob("seed-*"))
        return sorted(int(seed) for seed in found if seed.isdecimal())


@dataclass(frozen=True, slots=True)
class Fresh:
    """The stage need not run."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The stage has to run, because of `reason`."""

    reason: str


def run_stages(config: Config, run: Run, first: str = next(iter(STAGES)), last: str = next(reversed(STAGES))) -> None:
    """Bring the stages from `first` to `last` up to date, in table order, seeded ones for each seed of the run.

    Of several processes that were started together, the first does all of this, and the others share its training.
    Raises RunError where a stage before `first` is not fresh, or where another process works in the folder.
    """
    if count_processes() > 1 and not first == last == "train":
        raise RunError(
            f"{count_processes()} processes were started, and they can share training only. Use `erckit run CONFIG "
            "--to baselines` by itself, then `accelerate launch --num_processes N -m erckit.pipeline.cli train CONFIG`."
        )
    if is_helper():
        for one in _runs("train", run):
            if isinstance(state("train", config, one), Stale):
                _module("train").run(config.model_copy(update={"seed": one.seed}), one)
        return
    before, names = split_plan(config, first, last)
    for name in names:
        list(_foreign_files(name, config))  # a missing corpus or adapter is better known now than in some hours
    with hold(run.folder):
        for name in before:
            for one in _runs(name, run):
                if isinstance(found := state(name, config, one), Stale):
                    raise RunError(
                        f"{_label(name, one)} is not up to date ({found.reason}), and {first} builds on it. "
                        "Use `erckit run` without --from, which brings it up to date first."
                    )
        for left in run.folder.glob(".config.yaml.*"):
            left.unlink()  # by a process that was killed
        write_text(run.folder / "config.yaml", dump_config(config))
        for name in names:
            for one in _runs(name, run):
                run_stage(name, config, one)


def run_stage(name: str, config: Config, run: Run) -> bool:
    """Run one stage unless it is fresh, and say so in one line. Returns whether it ran.

    A stage that was killed under the same key finds what it had written, to resume, and one with parts what it wrote
    before; otherwise its folder is empty.
    Raises RunError where an input is missing.
    """
    folder = run.path(name)
    if isinstance(state(name, config, run), Fresh):
        (folder / STARTED).unlink(missing_ok=True)  # a kill right before the end left it
        say(f"{_label(name, run)}: up to date")
        return False
    record = _record(name, config, run)
    if missing := [path for path, digest in record["inputs"].items() if digest is None]:
        raise RunError(f"{name} reads {missing[0]}, which is missing. Use `erckit run` without --from to make it.")
    begin_folder(folder, hash_record(record), parts=STAGES[name].parts)
    reset_peak_memory()
    started, clock = datetime.now(UTC), time.monotonic()
    # A stage that asks config.seed for the seed must not train every seed with the first one.
    summary = _module(name).run(config.model_copy(update={"seed": run.seed}), run)
    seconds, peak, gpu_peak = time.monotonic() - clock, peak_memory_mib(), peak_gpu_memory_mib()
    manifest = {
        **record,
        "key": hash_record(record),
        "outputs": {
            path.relative_to(folder).as_posix(): {"sha256": hash_file(path), "bytes": path.stat().st_size}
            for path in list_outputs(folder)
        },
        "versions": package_versions(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "peak_memory_mib": round(peak, 1),
        "peak_gpu_memory_mib": None if gpu_peak is None else round(gpu_peak, 1),
        "summary": summary,
    }
    write_sealed(folder / MANIFEST, manifest)
    (folder / STARTED).unlink()
    memory = format_memory(peak) + ("" if gpu_peak is None else f" and {format_memory(gpu_peak)} of the GPU")
    say(f"{_label(name, run)}: {summary.rstrip('.')} in {format_seconds(seconds)}, peak {memory}")
    return True


def state(name: str, config: Config, run: Run) -> Fresh | Stale:
    """Whether a stage is fresh: made from what stands there now, and all it wrote is still as it wrote it."""
    folder = run.path(name)
    if not (folder / MANIFEST).is_file():
        return Stale("interrupted" if (folder / STARTED).is_file() else "never run")
    try:
        manifest = read_manifest(folder)
    except DataError:
        return Stale(f"its {MANIFEST} is broken")
    record = _record(name, config, run)
    if manifest.get("key") != hash_record(record):
        return Stale(explain_difference(manifest, record))
    change = find_change(folder, manifest)
    return Stale(change) if change else Fresh()


def forecast(config: Config, run: Run, first: str, last: str) -> Iterator[tuple[str, Fresh | Stale]]:
    """Yield what `run_stages` would do, stage by stage, without touching anything."""
    before, names = split_plan(config, first, last)
    stale: set[Path] = set()
    for name in [*before, *names]:
        for one in _runs(name, run):
            upstream = [u for u in _upstream(name, config) if any(r.path(u) in stale for r in _seen_by(name, u, one))]
            found = Stale(f"after {upstream[0]}") if upstream else state(name, config, one)
            if isinstance(found, Stale):
                stale.add(one.path(name))
            yield _label(name, one), found


def split_plan(config: Config, first: str, last: str) -> tuple[list[str], list[str]]:
    """The stages that have to be fresh already, and those to bring up to date.

    With `predict.adapter` nothing reads what train makes: train is left out unless it is asked for by name.
    Raises RunError where `last` comes before `first`, or where a report is asked for without answers on test.
    """
    if last == "report" and not config.predict.test:
        raise RunError("predict.test is false, and the report is about test. Stop before it, with --to evaluate.")
    unread = {"train"} - {first, last} if config.predict.adapter else set()
    names = [name for name in STAGES if name not in unread]
    start, stop = names.index(first), names.index(last)
    if stop < start:
        raise RunError(f"--from {first} --to {last}: {first} comes after {last}. Exchange them.")
    return names[:start], names[start : stop + 1]


def _runs(name: str, run: Run) -> list[Run]:
    return run.of_each_seed() if STAGES[name].seeded else [run]


def _seen_by(name: str, upstream: str, run: Run) -> list[Run]:
    """The runs whose `upstream` a stage reads: its own seed's, or those of all seeds where it is shared itself."""
    return [run] if STAGES[name].seeded else _runs(upstream, run)


def _label(name: str, run: Run) -> str:
    return f"{name} (seed {run.seed})" if STAGES[name].seeded and len(run.seeds) > 1 else name


def _module(name: str) -> ModuleType:
    return importlib.import_module(STAGES[name].module)


def _patterns(name: str, config: Config) -> list[str]:
    foreign = config.predict.adapter and name in ("predict", "report")
    return [pattern for pattern in STAGES[name].inputs if not (foreign and pattern.startswith("train/"))]


def _upstream(name: str, config: Config) -> list[str]:
    return list(dict.fromkeys(pattern.split("/")[0] for pattern in _patterns(name, config)))


def settings_of(name: str, config: Config) -> dict[str, Any]:
    """The part of the configuration that a stage depends on, by section."""
    return {
        section: getattr(config, section).model_dump(mode="json", exclude=INERT.get(section))
        for section in STAGES[name].sections
    }


def _record(name: str, config: Config, run: Run) -> dict[str, Any]:
    """All that decides what a stage makes; an input that is missing has no hash."""
    fingerprint = getattr(_module(name), "fingerprint", None)
    return {
        "stage": name,
        "erckit": __version__,
        "config": settings_of(name, config),
        "inputs": _hash_inputs(name, config, run),
        "seed": run.seed if STAGES[name].seeded else None,
        "fingerprint": fingerprint(config) if fingerprint else None,
    }


def _hash_inputs(name: str, config: Config, run: Run) -> dict[str, str | None]:
    """Hash every file that a stage reads, by its path in the run folder, or in the corpus or adapter."""
    paths = dict(_foreign_files(name, config))
    for pattern in _patterns(name, config):
        upstream, _, rest = pattern.partition("/")
        for one in _seen_by(name, upstream, run):
            folder = one.path(upstream)
            found = [rest] if rest and not rest.endswith("/") else recorded_outputs(folder, rest)
            for path in [folder / part for part in found] or [folder / rest]:
                paths[path.relative_to(run.folder).as_posix()] = path
    return {key: hash_file(path) if path.is_file() else None for key, path in sorted(paths.items())}


def _foreign_files(name: str, config: Config) -> Iterator[tuple[str, Path]]:
    """Files from outside the run folder, named so that moving them all elsewhere changes nothing."""
    if name == "ingest":
        files = [Path(path).absolute() for path in _module(name).corpus_files(config)]
        folder = Path(os.path.commonpath([path.parent for path in files])) if files else Path()
        yield from ((f"corpus/{path.relative_to(folder).as_posix()}", path) for path in files)
    if name == "predict" and config.predict.adapter:
        folder = Path(config.predict.adapter)
        files = list_outputs(folder)
        if not files:
            raise FileNotFoundError(
                f"{folder}: found no adapter there. Set predict.adapter to its folder, or remove it."
            )
        yield from ((f"adapter/{path.relative_to(folder).as_posix()}", path) for path in files)
