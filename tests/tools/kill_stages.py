"""Kill every stage at random moments, give the same command again, and compare with a run that nobody disturbed.

    python -m tests.tools.kill_stages sample --kills 20

A process is killed (SIGKILL) at a moment drawn evenly over the time that the stage takes, once or several times, and
then left to finish. Afterwards the run folder has to hold the same files with the same bytes, the log of training with
its losses among them. Three things only are not compared: `.lock`, which says who worked last; the checkpoints of
training; and of a `manifest.json` the entries `VARYING`, which say when a stage ran, how long and in how much memory.
Every attempt is a process of its own, forked from one that has imported everything: what is killed is the work.
"""

import argparse
import contextlib
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from random import Random

from erckit.data.files import hash_file, hash_record
from erckit.pipeline.checkpoints import find_checkpoint
from erckit.pipeline.config import load_config
from erckit.pipeline.console import quiet_libraries
from erckit.pipeline.lock import LOCK
from erckit.pipeline.manifest import MANIFEST, STARTED, read_manifest
from erckit.pipeline.run import Run
from erckit.pipeline.stages import STAGES

VARYING = ("started", "seconds", "peak_memory_mib", "peak_gpu_memory_mib")
PRELOADED = [
    *(stage.module for stage in STAGES.values()), "erckit.pipeline.training", "peft", "faiss", "matplotlib.figure",
    "sentence_transformers", "sklearn.linear_model", "sklearn.feature_extraction.text",
]  # fmt: skip


@dataclass(slots=True)
class Found:
    """What came of killing a stage: how often it was, how often it had a checkpoint, what differed in the end."""

    kills: int = 0
    resumed: int = 0
    differences: tuple[str, ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a small configuration: each stage runs more often than it is killed")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--kills", type=int, default=20, help="how often each stage is killed")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    options = parser.parse_args()
    quiet_libraries()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(context, options.config, options.overrides, Path(folder), Random(options.seed))
        killer.run_undisturbed()
        print(f"{'stage':<10} {'seconds':>8} {'kills':>6} {'with a checkpoint':>18}  different afterwards")
        wrong = False
        for stage in options.stages:
            found = killer.kill(stage, options.kills)
            wrong = wrong or bool(found.differences)
            differing = ", ".join(found.differences) or "nothing"
            numbers = f"{killer.seconds(stage):8.2f} {found.kills:6} {found.resumed:18}"
            print(f"{stage:<10} {numbers}  {differing}", flush=True)
    return 1 if wrong else 0


class Killer:
    """A configuration, an undisturbed run of it, and copies of that run to be disturbed."""

    def __init__(
        self, context: ForkServerContext, config: str, overrides: Sequence[str], folder: Path, random: Random
    ) -> None:
        self._context, self._folder, self._random = context, folder, random
        self._options = [config, *(part for override in overrides for part in ("--set", override))]
        loaded = load_config(config, overrides)
        # A folder of the same path for every attempt: it stands in the report's manifest.
        self.disturbed = Run(folder / "runs" / loaded.name, loaded.seed)
        self.whole = Run(folder / "undisturbed", loaded.seed)

    def run_undisturbed(self) -> None:
        self._finish(next(reversed(STAGES)))
        self.disturbed.folder.rename(self.whole.folder)

    def seconds(self, stage: str) -> float:
        return read_manifest(self.whole.path(stage))["seconds"]

    def kill(self, stage: str, kills: int) -> Found:
        """Kill a stage so often, and let it finish after every one to three times."""
        found = Found()
        while found.kills < kills and not found.differences:
            expected = self._prepare(stage)
            for _ in range(self._random.choice([1, 1, 2, 3])):
                if self._kill_once(stage):
                    found.kills += 1
                    found.resumed += find_checkpoint(self.disturbed.path(stage, "checkpoints")) is not None
            self._finish(stage)
            found.differences = tuple(compare(expected, describe(self.disturbed.folder)))
        return found

    def _prepare(self, stage: str) -> dict[str, str]:
        """Copy what stands before the stage. Returns what the folder is to hold after it."""
        shutil.rmtree(self.disturbed.folder, ignore_errors=True)
        shutil.copytree(self.whole.folder, self.disturbed.folder)
        names = list(STAGES)
        for later in names[names.index(stage) + 1 :]:
            shutil.rmtree(self.disturbed.path(later))
        expected = describe(self.disturbed.folder)
        shutil.rmtree(self.disturbed.path(stage))
        return expected

    def _kill_once(self, stage: str) -> bool:
        """Return whether the process was still at work when it was killed."""
        begun, lock = self.disturbed.path(stage, STARTED), self.disturbed.folder / LOCK
        lock.unlink(missing_ok=True)
        process = self._start(stage)
        while process.is_alive() and not (lock.is_file() and begun.is_file()):
            time.sleep(0.001)
        time.sleep(self._random.uniform(0, self.seconds(stage)))
        process.kill()
        process.join()
        return process.exitcode == -9

    def _finish(self, stage: str) -> None:
        process = self._start(stage)
        process.join()
        if process.exitcode:
            raise SystemExit(f"{stage} ended with status {process.exitcode}:\n{self._log.read_text(encoding='utf-8')}")

    def _start(self, stage: str) -> multiprocessing.process.BaseProcess:
        command = ["run", *self._options, "--runs", str(self.disturbed.folder.parent), "--to", stage]
        process = self._context.Process(target=run_command, args=(command, self._log))
        process.start()
        return process

    @property
    def _log(self) -> Path:
        return self._folder / "log.txt"


def run_command(arguments: Sequence[str], log: Path) -> None:
    """Run the command in this process, writing what it says to a file."""
    from erckit.pipeline.cli import main

    with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        status = main(arguments)
    sys.exit(status)


def describe(folder: Path) -> dict[str, str]:
    """Return a hash of every file of a run that is compared, by its path."""
    return dict(_describe(folder))


def _describe(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name == LOCK or "checkpoints" in path.relative_to(folder).parts:
            continue
        if path.name == MANIFEST:
            manifest = read_manifest(path.parent)
            yield name, hash_record({key: value for key, value in manifest.items() if key not in VARYING})
        else:
            yield name, hash_file(path)


def compare(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return the paths that only one of the two has, or that have another content."""
    return sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))


if __name__ == "__main__":
    sys.exit(main())
