"""Only a checkpoint that is as training wrote it is resumed from, and nothing in it is ever unpickled."""

import os
import pickle
import re
import shutil
from dataclasses import replace

import pytest
from erckit.data.errors import DataError
from erckit.data.files import write_json
from erckit.pipeline.checkpoints import SEAL, find_checkpoint, seal_checkpoint
from erckit.pipeline.stages import train


def write_checkpoint(folder, step, best):
    path = folder / f"checkpoint-{step}"
    write_json(path / "trainer_state.json", {"best_global_step": best})
    (path / "weights").write_bytes(bytes(range(100)))
    seal_checkpoint(path)
    return path


@pytest.fixture
def checkpoints(tmp_path):
    """A folder of checkpoints after steps 9 and 10, the first of them the best."""
    write_checkpoint(tmp_path, 9, best=9)
    write_checkpoint(tmp_path, 10, best=9)
    return tmp_path


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_the_last_one_is_found_and_stays(checkpoints):
    assert find_checkpoint(checkpoints) == str(checkpoints / "checkpoint-10")
    assert find_checkpoint(checkpoints / "nowhere") is None
    assert len(list(checkpoints.iterdir())) == 2


DAMAGES = {
    "a flipped byte": lambda path: flip(path / "weights", 50),
    "a file cut short": lambda path: (path / "weights").write_bytes(b"\0"),
    "a file that is gone": lambda path: (path / "weights").unlink(),
    "a file more": lambda path: (path / "optimizer.pt").write_bytes(b"x"),
    "another seal": lambda path: flip(path / SEAL, 10),
    "no seal": lambda path: (path / SEAL).unlink(),
    "a broken state": lambda path: (path / "trainer_state.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_that_was_changed_is_removed_and_the_one_before_is_found(checkpoints, damage):
    DAMAGES[damage](checkpoints / "checkpoint-10")
    assert find_checkpoint(checkpoints) == str(checkpoints / "checkpoint-9")
    assert not (checkpoints / "checkpoint-10").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_the_best_one_nothing_is_resumed(checkpoints, damage):
    """Training would end with other weights than those that were best on dev."""
    DAMAGES[damage](checkpoints / "checkpoint-9")
    assert find_checkpoint(checkpoints) is None


def test_a_process_that_helps_removes_nothing(checkpoints, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    flip(checkpoints / "checkpoint-10" / "weights", 3)
    assert find_checkpoint(checkpoints) == str(checkpoints / "checkpoint-9")
    assert (checkpoints / "checkpoint-10").exists()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture(scope="module")
def interrupted(eight_examples):
    """A configuration, and the run of a training that was killed after the first of its two epochs."""
    config, run = eight_examples("train.epochs=2", "train.batch_size=8")
    train.run(config, run)
    shutil.rmtree(run.path("train", "adapter"))
    shutil.rmtree(run.path("train", "checkpoints", "checkpoint-2"))
    return config, run


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_forged_checkpoint_is_refused_and_its_code_never_run(interrupted, tmp_path, name):
    """Forged with the right hashes, too."""
    config, run = interrupted[0], replace(interrupted[1], folder=tmp_path / "talk")
    shutil.copytree(interrupted[1].folder, run.folder)
    checkpoint = run.path("train", "checkpoints", "checkpoint-1")
    (checkpoint / name).write_bytes(pickle.dumps(Touch(tmp_path / "run"), protocol=2))
    seal_checkpoint(checkpoint)

    if name == "training_args.bin":  # nobody reads it
        train.run(config, run)
    else:
        with pytest.raises(DataError, match=re.escape(f"{checkpoint}: not a checkpoint that erckit wrote (")) as raised:
            train.run(config, run)
        assert f"Remove the folder {run.path('train', 'checkpoints')}, and the same" in str(raised.value)
    assert not (tmp_path / "run").exists()
    pickle.loads((checkpoint / name).read_bytes())
    assert (tmp_path / "run").exists()  # else the test proves nothing
