"""A disk that is full, or that may not be written, ends every stage with a message that names the file.

What earlier stages made stays, nothing counts as finished, and the same command works once there is room again.
"""

import builtins
import errno
import io
import itertools
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from erckit.pipeline.cli import main
from erckit.pipeline.stages import STAGES

from tests.tools.kill_stages import compare, describe


class FailingDisk:
    """Fails one call that writes below a folder: the one numbered `number`, or the first that `way` tells for a file.

    The ways are to "make" a file or a folder, to "write" into it (on /dev/full), to "flush" it and to "rename" it.
    """

    def __init__(self, folder: Path, number: int | None = None, way: str = "", name: str = "") -> None:
        self.folder, self.number, self.way, self.name, self.calls, self.failed = folder, number, way, name, 0, ""

    def fails(self, way: str, path: object) -> bool:
        if not isinstance(path, str | Path) or self.folder not in Path(path).parents or self.failed:
            return False
        self.calls += 1
        if self.number is None:
            wanted = way == self.way and f"{path}/".startswith((f"{self.folder}/{self.name}/", self.hidden))
        else:
            wanted = self.calls == self.number + 1
        self.failed = str(path) if wanted else ""
        return wanted

    @property
    def hidden(self) -> str:
        """How the path of a temporary file for it begins."""
        path = self.folder / self.name
        return f"{path.parent}/.{path.name}."

    @contextmanager
    def at_work(self):
        opened, made, folders, renamed, flushed = io.open, tempfile.mkstemp, os.mkdir, os.replace, os.fsync

        def refuse(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        def open_(file, mode="r", *arguments, **options):
            full = set(mode) & set("wax") and self.fails("write", file)
            return opened("/dev/full" if full else file, mode, *arguments, **options)

        def make(dir=None, prefix="", **options):
            path = f"{dir}/{prefix}"
            return refuse(path + "x") if self.fails("make", path + "x") else made(dir=dir, prefix=prefix, **options)

        def mkdir(path, *arguments, **options):
            is_new = not os.path.isdir(path)
            return refuse(path) if is_new and self.fails("make", path) else folders(path, *arguments, **options)

        def replace(source, target, **options):
            return refuse(source) if self.fails("rename", target) else renamed(source, target, **options)

        def fsync(handle):
            if self.fails("flush", os.readlink(f"/proc/self/fd/{handle}")):
                raise OSError(errno.ENOSPC, "No space left on device")
            flushed(handle)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "open", open_)
            patch.setattr(builtins, "open", open_)
            patch.setattr(tempfile, "mkstemp", make)
            patch.setattr(os, "mkdir", mkdir)
            patch.setattr(os, "replace", replace)
            patch.setattr(os, "fsync", fsync)
            yield


@pytest.fixture
def attempt(finished, tmp_path, capsys):
    """A function from a stage to one that runs it where all before it is there, and says what the message is."""

    def begin(stage):
        folder = tmp_path / "runs" / "talk"
        names = list(STAGES)
        shutil.copytree(finished.folder, folder)
        for later in names[names.index(stage) :]:
            shutil.rmtree(folder / "seed-1" / later if STAGES[later].seeded else folder / later)
        before, command = describe(folder), ["run", *finished.options, "--runs", str(folder.parent), "--to", stage]

        def run(disk=None):
            capsys.readouterr()
            if disk is None:
                assert main(command) == 0
                made, right = describe(folder), describe(finished.folder)
                differing = compare(made, {path: right[path] for path in right if path in made})
                assert differing in ([], ["report/manifest.json"])  # which says where the page is
                return ""
            with disk.at_work():
                status = main(command)
            said = capsys.readouterr()
            assert "Traceback" not in said.err
            now = describe(folder)
            assert {path: now.get(path) for path in before} == before
            assert status == (2 if disk.failed else 0)
            return said.err.splitlines(keepends=True)[-1] if said.err else ""  # after lines of progress

        return folder, run

    return begin


REMEDY = "Check the path, its permissions and the space on the disk.\n"


@pytest.mark.parametrize("stage", ["ingest", "evaluate"])
def test_whichever_write_fails_the_message_names_the_file_and_the_same_command_works_afterwards(attempt, stage):
    folder, run = attempt(stage)
    failures = set()
    for number in itertools.count():
        disk = FailingDisk(folder.parent, number)
        message = run(disk)
        if not disk.failed:
            break
        shown = Path(disk.failed)
        if shown.name.startswith("."):
            shown = shown.with_name(shown.name[1:].rpartition(".")[0] or shown.name)  # of a temporary file
        assert message.startswith(f"erckit: {shown}: ") and message.endswith(REMEDY), message
        failures.add(shown.name)
        if (folder / ".lock").is_file():  # else the folder itself could not be made
            assert not (folder / stage / "manifest.json").is_file()
    assert failures >= {"config.yaml", "started.json", "manifest.json"} and number > 12
    run()


WRITERS = {
    "profiles": ["vectors.train.npy", "facts.jsonl", "index.faiss", "store.json", "manifest.json"],
    "prompts": [
        "wording/question.txt",
        "dev.jsonl",
        "export/dev.messages.jsonl",
        "export/dev.messages.parquet",
        "checkpoints/dev.json",
        "summary.json",
        "export/README.md",
    ],
    "baselines": ["test.tfidf.jsonl"],
    "train": [
        "checkpoints/checkpoint-2/adapter_config.json",
        "checkpoints/checkpoint-2/trainer_state.json",
        "checkpoints/checkpoint-2/sealed.json",
        "adapter/adapter_config.json",
        "adapter/wording/question.txt",
        "adapter/erckit.json",
        "log.jsonl",
    ],
    "predict": ["test.jsonl"],
    "report": ["index.html"],
}


@pytest.mark.parametrize("stage", WRITERS)
def test_every_writer_names_its_file_and_the_same_command_works_afterwards(attempt, stage):
    folder, run = attempt(stage)
    home = f"seed-1/{stage}" if STAGES[stage].seeded else stage
    for name, way in zip(WRITERS[stage], itertools.cycle(["write", "flush", "rename", "make"])):
        by_library = "adapter_config" in name or "trainer_state" in name
        disk = FailingDisk(folder, way="write" if by_library else way, name=f"{home}/{name}")
        message = run(disk)
        told = Path(home) / (Path(name).parent if by_library else name)
        assert disk.failed and message.startswith(f"erckit: {folder / told}") and message.endswith(REMEDY), message
    run()


@pytest.mark.parametrize(
    ("stage", "limit", "told"),
    [
        ("profiles", 50_000, "profiles/vectors.train.npy"),
        ("train", 15_000, "seed-1/train/checkpoints/checkpoint-2"),  # safetensors
        ("train", 22_000, "seed-1/train/checkpoints/checkpoint-2"),  # tokenizers
        ("train", 40_000, "seed-1/train/checkpoints/checkpoint-2"),  # torch
    ],
)
def test_what_libraries_raise_when_a_file_cannot_grow_names_the_place(attempt, small_files, stage, limit, told):
    folder, run = attempt(stage)
    message = run(SimpleNamespace(at_work=lambda: small_files(limit), failed="for sure"))
    assert message.startswith(f"erckit: {folder / told}: ") and message.endswith(REMEDY), message
    if limit == 40_000:
        run()


# Outside the stages.


@pytest.mark.parametrize("limit", [20_000, 100])  # safetensors; the config, through Python
def test_a_model_is_merged_as_a_whole_or_not_at_all(finished, tmp_path, small_files, capsys, limit):
    target = tmp_path / "merged"
    with small_files(limit):
        assert main(["merge", str(finished.folder), str(target)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"erckit: {target}: ") and message.endswith(REMEDY), message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [100, 5000])
def test_labelling_goes_on_once_there_is_room(finished, tiny_corpus, tmp_path, small_files, capsys, limit):
    command = ["predict", str(finished.folder), "--input", str(tiny_corpus / "test.jsonl"), "--output"]
    assert main([*command, str(tmp_path / "whole.jsonl")]) == 0
    with small_files(limit):
        assert main([*command, str(tmp_path / "out.jsonl")]) == 2
    message = capsys.readouterr().err.splitlines(keepends=True)[-1]
    assert message.startswith(f"erckit: {tmp_path / 'out.jsonl.part'}: ") and message.endswith(REMEDY), message
    assert main([*command, str(tmp_path / "out.jsonl")]) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_variant_that_cannot_be_copied_names_the_file(finished, tmp_path, small_files, capsys):
    shutil.copytree(finished.folder, tmp_path / "talk")
    grid = tmp_path / "grid.yaml"
    grid.write_text("train.epochs: [2]\n")
    config, *settings = finished.options
    with small_files(5000):
        assert main(["sweep", config, str(grid), *settings, "--runs", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    half = tmp_path / "talk" / "sweep" / "train-epochs-2" / ".ingest"
    assert message.startswith(f"erckit: {half}/dialogues.") and message.endswith(REMEDY), message
    assert message.count("/") == str(half).count("/") + 1


@pytest.mark.parametrize("name", ["mislabels", "compare"])
def test_a_list_that_cannot_be_written_names_its_file(finished, tmp_path, small_files, capsys, name):
    shutil.copytree(finished.folder, tmp_path / "talk")
    run, found = str(tmp_path / "talk"), str(tmp_path / "found")
    command, told = {
        "mislabels": (["mislabels", run], f"{run}/seed-1/mislabels.csv"),
        "compare": (["compare", run, run, "--output", found], f"{found}/compare.json"),
    }[name]
    with small_files(1000):
        assert main(command) == 2
    # After lines of progress.
    assert capsys.readouterr().err.splitlines(keepends=True)[-1] == f"erckit: {told}: File too large. {REMEDY}"
    assert not Path(told).exists()
