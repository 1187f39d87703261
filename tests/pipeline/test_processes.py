"""Two processes that train together take the step that one process takes."""

import os
import subprocess
import sys
from pathlib import Path

import torch

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
    print("rows of a step and process:", trainer.args.gradient_accumulation_steps, file=sys.stderr)
"""
SETTINGS = ["train.class_weights=inverse", "train.batch_size=8", "train.together=2", "train.max_gradient_norm=1e9"]


def test_two_processes_take_the_step_of_one(eight_examples, tiny_config, tmp_path):
    script = tmp_path / "step.py"
    script.write_text(STEP, encoding="utf-8")
    weights = {}
    for processes in (1, 2):
        config, run = eight_examples(*SETTINGS, "train.row_tokens=1")
        out = tmp_path / f"{processes}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [str(script), str(run.folder), str(out), str(tiny_config), *SETTINGS, "train.row_tokens=1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        weights[processes] = torch.load(out, weights_only=True)
        assert Path(run.path("train", "checkpoints")).is_dir()
    assert len(weights[1]) == len(weights[2]) > 10
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[2][name.removeprefix("module.")], expected, atol=1e-5, rtol=0)
