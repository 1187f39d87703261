"""Real stages, killed at random moments and run again, leave what an undisturbed run leaves: the quick version."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from erckit.data.files import write_sealed
from erckit.pipeline.lock import LOCK
from erckit.pipeline.manifest import MANIFEST, read_manifest
from erckit.pipeline.stages import STAGES

from tests.tools.kill_stages import VARYING, compare, describe

CHECKOUT = Path(__file__).parents[2]


def test_every_stage_that_is_killed_and_run_again_ends_as_undisturbed(tiny_config):
    options = ["--kills", "2", "--set", "train.batch_size=12", "--set", "train.evaluations_per_epoch=3"]
    command = [sys.executable, "-m", "tests.tools.kill_stages", str(tiny_config), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(maxsplit=4) for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == list(STAGES)
    assert all(int(kills) >= 2 and different == "nothing" for _, _, kills, _, different in rows)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run."""
    shutil.copytree(finished.folder, tmp_path / "talk")
    return tmp_path / "talk"


def test_only_times_and_memory_of_a_manifest_are_not_compared(finished, folder):
    right, path = describe(finished.folder), folder / "ingest" / MANIFEST
    manifest = read_manifest(path.parent)
    for key in manifest:
        write_sealed(path, manifest | {key: "another"})
        assert compare(right, describe(folder)) == ([] if key in VARYING else ["ingest/manifest.json"])
    assert set(VARYING) < manifest.keys()


def test_every_other_file_is_compared(finished, folder):
    right = describe(finished.folder)
    for path in [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]:
        name, whole = path.relative_to(folder).as_posix(), path.read_bytes()
        path.write_bytes(whole + b" ")
        ignored = name == LOCK or "/checkpoints/" in name
        assert compare(right, describe(folder)) == ([] if ignored else [name])
        path.unlink()
        assert compare(right, describe(folder)) == ([] if ignored else [name])
        path.write_bytes(whole)
    (folder / "prompts" / ".dev.jsonl.left").write_bytes(b"")
    assert compare(right, describe(folder)) == ["prompts/.dev.jsonl.left"]
