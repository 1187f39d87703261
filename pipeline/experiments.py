"""Variants of a run: runs of their own beside it, each with something changed, made from the same stages.

What is up to date is skipped, what two variants have in common is made once, and a command that is killed goes on where
it stopped.
"""

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import Config, load_config
from .console import say
from .run import Run, run_stages
from .stages import STAGES
from .yaml_text import ConfigError

SHARED = ("ingest", "profiles", "baselines", "prompts", "train")
LONGEST_NAME = 80  # of a folder, in letters


def load_variants(
    config_name: str, overrides: Sequence[str], seed: int, variants: Mapping[str, Sequence[str]]
) -> dict[str, Config]:
    """Return the configuration of each variant by its name, from its overrides.

    Raises ConfigError for one that is not valid, for one of another corpus, and for names that would share a folder.
    """
    data, folders = load_config(config_name, overrides, seed).data, dict[str, str]()
    loaded = {name: load_config(config_name, [*overrides, *changes], seed) for name, changes in variants.items()}
    for name, config in loaded.items():
        if config.data != data:
            raise ConfigError(
                f"{name}: it changes the corpus, and variants are compared on the same one. Leave it out."
            )
        if (other := folders.setdefault(name_folder(name), name)) != name:
            raise ConfigError(f"{name}: its folder would be that of {other!r}. Rename one of them.")
    return loaded


def make_variants(config: Config, run: Run, variants: Mapping[str, Config], folder: Path, last: str) -> dict[str, Run]:
    """Bring the variants of a run up to date up to the stage `last`, seed by seed, in a folder each inside `folder`."""
    runs, made = dict[str, Run](), [(config, run)]
    for name, other in variants.items():
        say(f"{name}:")
        runs[name] = Run(folder / name_folder(name), run.seed, run.seeds)
        _share_stages(made, other, runs[name])
        run_stages(other, runs[name], last=last)
        made.append((other, runs[name]))
    return runs


def write_override(key: str, value: Any) -> str:
    """Return an override as `--set` takes it."""
    return f"{key}={json.dumps(value, default=str)}"


def name_folder(name: str) -> str:
    """Return the name of a variant's folder: its words, and where these are many a hash in place of the last ones."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if len(words) <= LONGEST_NAME:
        return words
    return f"{words[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


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
                _copy_folder(source, half)
                half.rename(target)


def _copy_folder(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:  # of all files that could not be copied
        _, copy, why = error.args[0][0]
        raise OSError(errno.EIO, why.partition(": ")[0], copy) from error
