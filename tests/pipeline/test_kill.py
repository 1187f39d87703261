"""A kill at any moment leaves nothing that passes for finished work, and nothing half-made to go on from."""

import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import pytest
from erckit.data.files import write_json
from erckit.pipeline import manifest as manifest_module
from erckit.pipeline import run as run_module
from erckit.pipeline.manifest import MANIFEST, STARTED, begin_folder
from erckit.pipeline.run import Fresh, RunError, Stale, forecast, run_stage, state

from tests.pipeline import fake_stages
from tests.pipeline.fake_stages import World, make_config, new_world, sha256


@pytest.fixture
def world():
    with new_world() as made:
        yield made


class Killed(BaseException):
    """Stands for SIGKILL, which no `except Exception` catches either."""


@contextmanager
def killed_after(lines: int):
    """Raise `Killed` in place of a line of run.py, manifest.py, shutil, or the stage, after so many of their lines."""
    watched = {run_module.__file__, manifest_module.__file__, shutil.__file__}
    left = itertools.count(lines, -1)

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in watched and frame.f_code is not World.work.__code__:
            return None
        if event == "line" and next(left) == 0:
            raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    except OSError as error:
        raise Killed from error  # shutil closes a file twice when something is raised right after the first time
    finally:
        sys.settrace(before)


def test_a_kill_between_any_two_lines_leaves_nothing_that_passes_for_finished(world):
    world.go(last="profiles")
    run, first = world.run(), world.config
    folder = run.path("profiles")
    second = make_config(str(world.corpus), "profiles.examples_per_emotion=9")
    right = world.outputs("profiles", second, run)
    for lines in itertools.count():
        run_stage("profiles", first, run)
        (folder / "left-over.txt").write_text("of the first configuration")
        try:
            with killed_after(lines):
                run_stage("profiles", second, run)
        except Killed:
            ended = False
        else:
            ended = True
        if (folder / MANIFEST).is_file():
            recorded = json.loads((folder / MANIFEST).read_text())["outputs"]
            assert {path: sha256(folder / path) for path in recorded} == {p: o["sha256"] for p, o in recorded.items()}
            assert len(recorded) == len(right)
        run_stage("profiles", second, run)
        assert isinstance(state("profiles", second, run), Fresh)
        # A kill right after the manifest was written leaves the other record, which then means nothing.
        assert {p: p.read_bytes() for p in folder.iterdir() if p.name not in (MANIFEST, STARTED)} == right
        if ended:
            break
    assert lines > 50  # the loop really went through the lines


def test_a_kill_while_a_folder_is_emptied_never_leaves_half_of_it_to_resume(tmp_path):
    names, left = {"a", "b", "c"}, set()
    for lines in itertools.count():
        begin_folder(tmp_path / "train", "one key")
        for name in names:
            (tmp_path / "train" / name).write_text("checkpoint")
        try:
            with killed_after(lines):
                begin_folder(tmp_path / "train", "another key")
        except Killed:
            begin_folder(tmp_path / "train", "one key")
            left.add(frozenset(path.name for path in (tmp_path / "train").iterdir()) - {STARTED})
        else:
            break
    assert left == {frozenset(names), frozenset()}


def test_a_finished_stage_that_has_to_run_again_starts_empty_even_under_the_same_key(world):
    world.go(last="profiles")
    folder = world.run().path("profiles")
    # As a kill leaves it between the writing of the one record and the removal of the other.
    write_json(folder / STARTED, {"key": json.loads((folder / MANIFEST).read_text())["key"]})
    assert world.go(last="profiles") == []

    (folder / "store.json").unlink()
    (folder / "left-over.txt").write_text("x")
    assert world.go(last="profiles") == [("profiles", None)]
    assert not (folder / "left-over.txt").exists()


def test_a_killed_stage_resumes_under_the_same_key_and_starts_empty_under_another(world):
    found = []

    def look_then_fail(name, run):
        if name == "profiles":
            found.append(sorted(path.name for path in run.path(name).iterdir() if path.name != STARTED))
            run.path(name, "checkpoints").mkdir(exist_ok=True)
            run.path(name, "half.txt").write_text("half")
            if len(found) < 4:
                raise Killed

    world.before = look_then_fail
    other = make_config(str(world.corpus), "profiles.encoder=other")
    for config in (world.config, world.config, other, other):
        world.config = config
        try:
            world.go(last="profiles")
        except Killed:
            assert state("profiles", config, world.run()) == Stale("interrupted")

    assert found == [[], ["checkpoints", "half.txt"], [], ["checkpoints", "half.txt"]]
    assert isinstance(state("profiles", other, world.run()), Fresh)


CHILD = """
    import importlib.util, pathlib, sys, time
    spec = importlib.util.spec_from_file_location("fake_stages", sys.argv[1])
    tests = importlib.util.module_from_spec(spec)
    sys.modules["fake_stages"] = tests
    spec.loader.exec_module(tests)
    tests.run_module.STAGES = tests.TABLE
    world = tests.World(pathlib.Path(sys.argv[2]))
    sys.modules.update(world.modules())

    def stop_half_way(name, run):
        if name == "profiles":
            run.path(name, "facts.jsonl").write_text("half")
            sys.stdout.write("half\\n")
            sys.stdout.flush()
            time.sleep(600)

    world.before = stop_half_way
    world.go()
"""


def test_while_a_process_works_a_second_is_refused_and_once_it_is_killed_its_stage_runs_again(world):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), fake_stages.__file__, str(world.corpus.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            while child.stdout.readline() not in ("half\n", ""):
                continue
            holder = rf"\(pid {child.pid} on {re.escape(socket.gethostname())}, since \d{{4}}-[-\d: ]+ UTC\)"
            with pytest.raises(RunError, match=rf"talk: another erckit process {holder} works in this run folder."):
                world.go()
            assert list(forecast(world.config, world.run(), "ingest", "ingest")) == [("ingest", Fresh())]  # only looks
            assert not world.run().path("profiles", MANIFEST).exists()
        finally:
            child.kill()  # SIGKILL

    assert state("profiles", world.config, world.run()) == Stale("interrupted")
    assert world.go(last="prompts") == [("profiles", None), ("prompts", None)]  # ingest was finished
