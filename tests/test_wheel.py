"""The wheel: it holds every file of the package, and the command works from it, in an environment of its own."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from erckit.pipeline.config import shipped_configs
from erckit.pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "retrieval", "prompts", "pipeline")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository, by their paths in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the repository is not known")
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for path in found.split("\0") if path and (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked, tmp_path_factory) -> Path:
    """The wheel of the tracked files as they are now, built from a copy: a build leaves files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked:
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / path).write_bytes((ROOT / path).read_bytes())
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def erckit(wheel, tmp_path_factory) -> Callable[..., list[str]]:
    """A function from arguments to the lines that the installed command says, in a folder of its own."""
    fresh, elsewhere = tmp_path_factory.mktemp("fresh") / "venv", tmp_path_factory.mktemp("elsewhere")
    venv.create(fresh, with_pip=False)
    (site,) = fresh.glob("lib/python*/site-packages")
    # Its other packages are those at hand, as nothing is fetched. Their own .pth files do not count there: what an
    # editable install of the checkout left in one is not seen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip("--python", fresh / "bin" / "python", "install", "--no-deps", "--ignore-installed", "--no-index", wheel)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ERCKIT_DATA")}

    def run(*arguments: str) -> list[str]:
        command = [fresh / "bin" / "erckit", *arguments]
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    where = [fresh / "bin" / "python", "-c", "import erckit; print(erckit.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, env=environment, check=True, capture_output=True, text=True).stdout
    assert Path(found.strip()) == site / "erckit" / "__init__.py"  # else the checkout would be tested once more
    return run


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_every_tracked_file_of_the_packages_and_nothing_else(wheel, tracked):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    belong = {f"erckit/{path}" for path in tracked if path.startswith(tuple(f"{name}/" for name in PACKAGES))}

    assert held == belong | {"erckit/__init__.py"}
    kinds = {Path(path).suffix for path in held}
    assert kinds == {
        ".py",
        ".yaml",
        ".txt",
        ".json",
        ".jsonl",
        ".jinja",
        ".css",
        ".js",
    }  # no kind of file was forgotten here
    with zipfile.ZipFile(wheel) as opened:
        assert all(opened.read(path) == (ROOT / path.removeprefix("erckit/")).read_bytes() for path in held)


def test_the_installed_command_lists_configurations_and_says_what_would_run(erckit):
    assert [line.split()[0] for line in erckit("configs")] == list(shipped_configs())
    assert any(line.startswith("name: sample") for line in erckit("configs", "sample"))
    planned = erckit("run", "sample", "--dry-run")
    assert [line.partition(":")[0] for line in planned] == list(STAGES)
    assert all("would run" in line for line in planned)


def test_the_installed_command_runs_the_bundled_corpus_up_to_the_report(erckit, tiny_model):
    # A tiny model in place of the embedded one, which would train for minutes.
    options = [
        f"model.name={tiny_model('qwen2')}",
        "prompts.max_tokens=2048",
        "train.epochs=1",
        "evaluate.resamples=50",
    ]
    command = ["run", "sample", *(part for option in options for part in ("--set", option))]
    said = [line for line in erckit(*command) if not line.startswith("  ")]

    assert [line.partition(":")[0] for line in said] == list(STAGES)
    assert said[-1].startswith("report: the page runs/sample/report/index.html in ")
    assert erckit(*command, "--dry-run") == [f"{name}: up to date" for name in STAGES]
    assert any("«" in line for line in erckit("prompts", "sample", *command[2:], "--preview", "1"))
