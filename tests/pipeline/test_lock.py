"""One process at a time works in a run folder, and whoever only looks is let in."""

import fcntl
import re
import shutil
from dataclasses import replace

import pytest
from erckit.pipeline.ablation import ablate
from erckit.pipeline.cli import main
from erckit.pipeline.lock import LOCK, RunError, hold


@pytest.fixture
def held(finished, tmp_path):
    """The folder of a finished run in which another process works."""
    folder = tmp_path / "talk"
    shutil.copytree(finished.folder, folder)
    with (folder / LOCK).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # opened by itself, it is as good as another process's
        file.truncate(0)
        file.write(b'{"pid": 12345, "host": "a-host", "since": "2025-01-02 03:04:05 UTC"}')
        file.flush()
        yield folder


def test_who_would_write_is_told_who_works_there(finished, held, capsys):
    before = {path: path.read_bytes() for path in held.rglob("*") if path.is_file()}
    message = (
        f"{held}: another erckit process (pid 12345 on a-host, since 2025-01-02 03:04:05 UTC) works in this run "
        "folder. Wait until it ends, or give this run another name with --set name=NAME."
    )
    for command in ("run", "train", "ablate"):
        assert main([command, *finished.options, "--runs", str(held.parent)]) == 2
        assert capsys.readouterr().err == f"erckit: {message}\n"
    assert before == {path: path.read_bytes() for path in held.rglob("*") if path.is_file()}

    (held / LOCK).write_bytes(b"{")  # it has only just begun
    with pytest.raises(RunError, match=re.escape(f"{held}: another erckit process works in this run folder.")):
        ablate(finished.options[0], [], replace(finished.run, folder=held), {})


def test_who_only_looks_is_let_in(finished, held, capsys, monkeypatch):
    options = [*finished.options, "--runs", str(held.parent)]
    assert main(["run", *options, "--dry-run"]) == 0
    assert main(["prompts", *options, "--preview", "1"]) == 0
    assert "---" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", ["Ada: So.\n"])
    assert main(["chat", str(held)]) == 0


def test_a_process_may_hold_a_folder_twice_and_then_lets_go_of_it(tmp_path):
    folder = tmp_path / "new"
    with hold(folder):
        with hold(folder / ".." / "new"):
            pass
        with (folder / LOCK).open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (folder / LOCK).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
