"""How fast conversations with a temporary memory are answered, against the public recipe, in one run.

    python tests/benchmarks/memory.py emorynlp-minilm
    python tests/benchmarks/memory.py emorynlp-minilm --shape qwen2.5-0.5b --turns 40

prints one table. The recipe is that of Temp-LoRA (arXiv 2401.11504) on PEFT and torch, one conversation at a time:
rank 64, alpha 64, all linear layers, AdamW, rate 5e-5, two epochs a turn on what was said; its answers are scored as
erckit's are, in one forward pass. Rows of erckit have the default memory, with 1, 8 and 32 conversations at once.
Conversations are real utterances strung together. Every row runs in a process of its own, so that its peak memory is
its own; the time of a turn is that around the 10th, 100th and 1,000th of a conversation.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from erckit.data.files import read_json, write_json
from erckit.pipeline.artefacts import load_dialogues
from erckit.pipeline.backbone import load_model
from erckit.pipeline.config import Memory, load_config
from erckit.pipeline.measure import peak_memory_mib, reset_peak_memory
from erckit.pipeline.memory.conversations import answer_with_memory
from erckit.pipeline.memory.writing import Writer
from erckit.pipeline.run import Run, run_stages
from erckit.pipeline.stages.prompts import build_task
from erckit.prompts.tasks import NOTHING_KNOWN, Task, build_trees
from erckit.prompts.tree import PromptTree, unroll
from peft import LoraConfig, get_peft_model
from throughput import SHAPES, save_shape  # beside this file
from torch.nn.functional import cross_entropy

ROWS = {"recipe": 1, "1 slot": 1, "8 slots": 8, "32 slots": 32}
PLACES = (10, 100, 1000)


def main() -> None:
    options = parse()
    if options.row:
        write_json(options.folder / "found.json", measure(options))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        prepare(options)
        print(f"{'':10} {'turns':>6} {'turns/s':>8} {'times':>7} {'GiB':>6}", *(f"ms at {p:>5}" for p in PLACES))
        recipe = 0.0
        for row in ROWS:
            command = [sys.executable, __file__, *sys.argv[1:], "--row", row, "--folder", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = read_json(options.folder / "found.json")
            recipe = recipe or found["speed"]
            at = [f"{1000 * found[str(p)]:11.1f}" if str(p) in found else f"{'':11}" for p in PLACES]
            speed = f"{found['speed']:8.2f} {found['speed'] / recipe:6.2f}x"
            print(f"{row:10} {found['turns']:6} {speed} {found['peak'] / 1024:6.2f}", *at, flush=True)


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a configuration; its corpus, model and wording are used")
    parser.add_argument("--turns", type=int, default=1100, help="turns of a conversation, at most")
    parser.add_argument("--total", type=int, default=3300, help="turns of all conversations of a row, at most")
    parser.add_argument("--shape", choices=SHAPES, help="a model of random weights in place of the configuration's")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(options: Any) -> None:
    if options.shape:
        save_shape(options)
    run_stages(load_config(options.config), Run(options.folder / "run", seed=1), last="ingest")


def measure(options: Any) -> dict[str, float]:
    overrides = [f"model.name={options.folder / 'model'}", "model.attention=causal"] if options.shape else []
    config, run = load_config(options.config, overrides), Run(options.folder / "run", seed=1)
    memory, slots = Memory(slots=ROWS[options.row]), ROWS[options.row]
    task = replace(build_task(config, run), history="window", window=memory.window)
    turns = min(options.turns, options.total // slots)
    model = load_model(config.model).eval()
    groups = [list(plant(run, task, turns, place)) for place in range(slots)]
    reset_peak_memory()
    times: list[float] = []
    start = time.perf_counter()
    if options.row == "recipe":
        for _ in follow_recipe(model, task, groups[0]):
            times.append(time.perf_counter())
    else:
        right = Writer.turn

        def clocked(self: Writer, turns: Any) -> Any:
            outcomes = right(self, turns)
            times.append(time.perf_counter())
            return outcomes

        Writer.turn = clocked
        both_ways = config.model.both_ways
        answered = answer_with_memory(
            model, task.tokens, task.wording, groups, memory, both_ways=both_ways, row_tokens=100_000
        )
        assert sum(1 for _ in answered) == slots * turns
    found = {"turns": slots * turns, "speed": slots * turns / (times[-1] - start), "peak": peak_memory_mib()}
    for place in PLACES:
        if place + 5 < len(times):
            found[str(place)] = (times[place + 5] - times[place - 5]) / 10 / slots
    return found


def plant(run: Run, task: Task, turns: int, place: int) -> Iterator[PromptTree]:
    """Yield the trees of a conversation of so many turns, another one for every place."""
    dialogues = load_dialogues(run, "train")
    said = [u for d in dialogues[place * 20 :] + dialogues[: place * 20] for u in d.utterances][:turns]
    dialogue = replace(
        dialogues[0], id=f"long-{place}", utterances=tuple(replace(u, id=str(turn)) for turn, u in enumerate(said))
    )
    return build_trees(dialogue, NOTHING_KNOWN, task, asked=range(len(said)), losses=Counter())


def follow_recipe(model: Any, task: Task, group: list[PromptTree]) -> Iterator[str]:
    """Temp-LoRA, turn by turn: answer, then two epochs on what was said."""
    model.set_attn_implementation("sdpa")
    model = get_peft_model(model, LoraConfig(r=64, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-5)
    answers = {label: ids[0] for label, ids in task.tokens.answers.items()}
    told: dict[int, str] = {}
    for tree in group:
        (branch,) = tree.branches
        prompt = task.tokens.ids(unroll(tree, branch, told, task.wording))
        with torch.inference_mode():
            logits = model(torch.tensor([prompt]), use_cache=False, logits_to_keep=1).logits[0, -1]
        told[branch.turn] = max(answers, key=lambda label: logits[answers[label]].item())
        before = task.tokens.ids(tree.trunk[: tree.spans[-1][0]])
        words = task.tokens.ids(tree.trunk[slice(*tree.spans[-1])])
        for _ in range(2):
            optimizer.zero_grad()
            kept = model(torch.tensor([[*before, *words]]), use_cache=False, logits_to_keep=len(words) + 1).logits[0]
            cross_entropy(kept[:-1].float(), torch.tensor(words)).backward()
            optimizer.step()
        yield told[branch.turn]


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
