"""Two processes do what one process does, when they train together and when they share the work of a stage."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from erckit.data.errors import DataError
from erckit.pipeline.parallel import map_in_order
from erckit.pipeline.run import RunError, run_stages
from erckit.prompts.wording import read_wording

STEP = """
import sys
import torch
from erckit.pipeline.config import load_config
from erckit.pipeline.run import Run
from erckit.pipeline.stages.train import build_trainer
from pathlib import Path

folder, out, config, *overrides = sys.argv[1:]
config = load_config(config, overrides)
trainer = build_trainer(config, Run(Path(folder), seed=config.seed))
generator = torch.Generator().manual_seed(5)
for name, parameter in trainer.model.named_parameters():
    if "lora_B" in name:  # at 0, where it starts, it hides the gradients of the other matrix
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
trainer.train()
if trainer.accelerator.is_main_process:
    torch.save({name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}, out)
"""
SETTINGS = ["train.class_weights=inverse", "train.batch_size=8", "train.together=2", "train.max_gradient_norm=1e9"]


def launch(processes: int, *arguments: object) -> str:
    """Run a script or module in so many processes. Returns what they write to stdout."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += [str(argument) for argument in arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_take_the_step_of_one(eight_examples, tiny_config, tmp_path):
    script = tmp_path / "step.py"
    script.write_text(STEP, encoding="utf-8")
    settings = [*SETTINGS, "train.row_tokens=1"]  # as many rows as there are visits
    weights = {}
    for processes in (1, 2):
        _, run = eight_examples(*settings)
        launch(processes, script, run.folder, tmp_path / f"{processes}.pt", tiny_config, *settings)
        weights[processes] = torch.load(tmp_path / f"{processes}.pt", weights_only=True)
    assert len(weights[1]) == len(weights[2]) > 10
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[2][name], expected, atol=1e-5, rtol=0)


def test_the_command_trains_in_two_processes_and_one_of_them_speaks(begin, tiny_config):
    _, run = begin()
    options = [tiny_config, "--runs", run.folder.parent, "--set", f"name={run.folder.name}"]
    said = launch(2, "-m", "erckit.pipeline.cli", "train", *options)
    assert [line.split(":")[0].split(",")[0] for line in said.splitlines()] == ["  epoch 1.00", "train"]
    assert run.path("train", "adapter", "adapter_model.safetensors").is_file()
    assert launch(2, "-m", "erckit.pipeline.cli", "train", *options) == "train: up to date\n"


def test_stages_that_processes_cannot_share_are_refused(begin, tiny_config, monkeypatch):
    config, run = begin()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="^2 processes were started, and they can share training only. Use `erckit run"):
        run_stages(config, run)


def take(items: list[int], taken: list[int]) -> Iterator[int]:
    for item in items:
        taken.append(item)
        yield item


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_few_items_are_under_way(processes):
    # The first takes longest; the function is made in the process that calls it.
    begin = partial(eval, "lambda n: (__import__('time').sleep(0.5 if n == 0 else 0), n * n)[1]")
    items, taken, found = list(range(40)), [], []
    for result in map_in_order(begin, take(items, taken), processes):
        found.append(result)
        assert len(taken) - len(found) <= 2 * processes
    assert found == [n * n for n in items]


def test_an_error_in_another_process_is_that_of_the_function():
    begin = partial(eval, "lambda n: __import__('erckit.data.errors').data.errors.read(n)")
    with pytest.raises(AttributeError, match="has no attribute 'read'"):
        list(map_in_order(begin, [1], 2))
    begin = partial(read_wording, "nowhere")
    with pytest.raises(DataError, match="^no wording 'nowhere'; expected one of "):
        list(map_in_order(begin, [1], 2))


def test_a_process_that_dies_is_told_as_an_error():
    begin = partial(eval, "lambda n: __import__('os')._exit(1)")
    with pytest.raises(
        DataError, match="^one of 2 processes was ended from outside, as happens where memory runs out."
    ):
        list(map_in_order(begin, [1], 2))


SLEEPER = """
import os, sys
from functools import partial
from erckit.pipeline.parallel import map_in_order

if __name__ == "__main__":
    begin = partial(eval, "lambda n: (__import__('time').sleep(n), __import__('os').getpid())[1]")
    for pid in map_in_order(begin, [0.3, 0.3, *[600] * 20], 2):
        print(pid, flush=True)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER, encoding="utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        helpers = {int(child.stdout.readline()) for _ in range(2)}
        child.kill()  # SIGKILL
    for _ in range(300):
        if not any(is_running(pid) for pid in helpers):
            return
        time.sleep(0.1)
    raise AssertionError(f"{helpers} still run")


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").is_dir() else True
