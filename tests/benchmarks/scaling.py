"""How time and memory grow with the length of a dialogue: real utterances, strung together to ever longer dialogues.

    python tests/benchmarks/scaling.py emorynlp-minilm

prints one table: seconds of one training pass (forward and backward) and of answering turn by turn, and how many
times as much as for half the turns. Every row runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from erckit.data.dialogue import Dialogue
from erckit.data.files import read_json, write_json
from erckit.pipeline.artefacts import load_dialogues
from erckit.pipeline.backbone import load_model, lora
from erckit.pipeline.config import load_config
from erckit.pipeline.epochs import Batches, TrainingPrompts
from erckit.pipeline.measure import peak_memory_mib, reset_peak_memory
from erckit.pipeline.run import Run, run_stages
from erckit.pipeline.scoring import answer_log_likelihoods, answer_trees
from erckit.pipeline.stages.prompts import build_task
from erckit.prompts.tasks import NOTHING_KNOWN, build_trees
from peft import get_peft_model

TURNS = (100, 200, 400, 800)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a configuration; its corpus, model and prompts are used, with full history")
    parser.add_argument("--turns", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turns:
        write_json(options.folder / "found.json", measure(options.config, options.turns, options.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        run_stages(load_config(options.config), Run(Path(folder) / "run", seed=1), last="ingest")
        print(f"{'turns':>6} {'train s':>9} {'times':>6} {'GiB':>6} {'answer s':>9} {'times':>6} {'GiB':>6}")
        before: dict[str, Any] = {}
        for turns in TURNS:
            command = [sys.executable, __file__, options.config, "--turns", str(turns), "--folder", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = read_json(Path(folder) / "found.json")
            cells = [f"{turns:6}"]
            for what in ("train", "answer"):
                times = f"{found[what] / before[what]:5.2f}x" if before else ""
                cells.append(f"{found[what]:9.2f} {times:>6} {found[f'{what} peak'] / 1024:6.2f}")
            print(*cells, flush=True)
            before = found


def measure(name: str, turns: int, folder: Path) -> dict[str, float]:
    config, run = load_config(name, ["prompts.history=full"]), Run(folder / "run", seed=1)
    task, dialogue = build_task(config, run), string_together(load_dialogues(run, "dev"), turns)
    trees = list(build_trees(dialogue, NOTHING_KNOWN, task, asked=range(turns), losses=Counter()))
    both_ways = config.model.both_ways
    batches = Batches(turns, 0, config.train.row_tokens)
    prompts = TrainingPrompts(
        trees, task.labels, task.tokens, task.wording, both_ways=both_ways, batches=batches, noise=0.0, seed=1
    )
    settings = config.train
    model: Any = get_peft_model(
        load_model(config.model), lora(config.model, rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=0.0)
    )
    found = {}
    for what in ("train", "answer"):
        reset_peak_memory()
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            if what == "train":
                for place in range(len(prompts)):
                    row = prompts.row(place)
                    answers = [[answer] for answer in row.answers]
                    (-answer_log_likelihoods(model, row.parts, answers, task.tokens.choices).mean()).backward()
            else:
                model.eval()
                answers = answer_trees(
                    model, task.tokens, task.wording, trees, both_ways=both_ways, conversations=1, row_tokens=4096
                )
                assert sum(1 for _ in answers) == turns
            best = min(best, time.perf_counter() - start)
        found |= {what: best, f"{what} peak": peak_memory_mib()}
    return found


def string_together(dialogues: list[Dialogue], turns: int) -> Dialogue:
    said = [utterance for dialogue in dialogues for utterance in dialogue.utterances if utterance.label][:turns]
    return Dialogue("long", tuple(replace(utterance, id=str(turn)) for turn, utterance in enumerate(said)))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
