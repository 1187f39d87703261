"""How fast conversations with a temporary memory are answered, against the public recipe, in one run.

    python tests/benchmarks/memory.py emorynlp-minilm
    python tests/benchmarks/memory.py emorynlp-minilm --shape qwen2.5-0.5b --conversations 8 --turns 4 --long 0
    python tests/benchmarks/memory.py emorynlp-minilm --rows "1 slot" --turns 0 --long 2000

prints one table. The recipe is that of Temp-LoRA (arXiv 2401.11504) on PEFT and torch, one conversation at a time:
rank 64, alpha 64, all linear layers, AdamW, rate 5e-5, two epochs a turn on what was said, no gradient clipping; its
answers are scored as erckit's are, in one forward pass. Rows of erckit have the memory that the configuration
describes, with 1, 8 and 32 conversations at once. All rows answer the same conversations, which are real utterances
strung together. Then each answers as many long conversations as it has slots, the same 20 utterances over and over, so
that nothing but the place differs: the time of a turn around the 10th, the 100th and the 1,000th; how long the last 60
turns take against those from the 50th on of new conversations, which advance in turns with the old ones; and how high
memory peaks in 100 turns before that, against 100 from the 50th on. Every row runs in a process of its own.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from erckit.data.files import read_json, write_json
from erckit.pipeline.artefacts import load_dialogues
from erckit.pipeline.backbone import load_model
from erckit.pipeline.config import load_config
from erckit.pipeline.measure import peak_memory_mib, reset_peak_memory
from erckit.pipeline.memory.conversations import answer_with_memory, show_window
from erckit.pipeline.run import Run, run_stages
from erckit.pipeline.stages.prompts import build_task
from erckit.prompts.tasks import NOTHING_KNOWN, Task, build_trees
from erckit.prompts.tree import PromptTree, unroll
from peft import LoraConfig, get_peft_model
from throughput import SHAPES, save_shape  # beside this file
from torch.nn.functional import cross_entropy

ROWS = {"recipe": 1, "1 slot": 1, "8 slots": 8, "32 slots": 32}
PLACES = (10, 100, 1000)
PERIOD = 20  # turns after which a conversation says the same again
EARLY, COMPARED, WATCHED = 50, 60, 100  # the turn from which the end is compared, over so many turns: time, memory
SHORTEST = EARLY + 2 * WATCHED + COMPARED  # of a long conversation


def main() -> None:
    options = parse()
    if options.row:
        write_json(options.folder / "found.json", measure(options))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        prepare(options)
        places = find_places(options.long)
        head = f"{'':10} {'turns':>6} {'turns/s':>8} {'times':>7} {'GiB':>6}"
        print(
            head, *(f"ms at {place:>5}" for place in places), f"{'end / 50th':>11} {'of memory':>11}" if places else ""
        )
        recipe = 0.0
        for row in options.rows:
            command = [sys.executable, __file__, *sys.argv[1:], "--row", row, "--folder", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found = read_json(options.folder / "found.json")
            recipe = recipe or found["speed"]
            at = [f"{found[str(place)]:11.1f}" for place in places]
            speed = f"{found['speed']:8.2f} {found['speed'] / (recipe or 1):6.2f}x"
            ends = f"{found['time at the end']:10.3f}x {found['memory at the end']:10.3f}x" if places else ""
            print(f"{row:10} {found['turns']:6} {speed} {found['peak'] / 1024:6.2f}", *at, ends, flush=True)


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a configuration; its corpus, model, wording and memory are used")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--conversations", type=int, default=32, help="conversations that all rows answer")
    parser.add_argument("--turns", type=int, default=30, help="turns of each of them")
    parser.add_argument("--long", type=int, default=1080, help="turns of a long conversation; 0: none")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows")
    parser.add_argument("--shape", choices=SHAPES, help="a model of random weights in place of the configuration's")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if 0 < options.long < SHORTEST:
        parser.error(f"--long {options.long}: expected {SHORTEST} turns at least, or 0 for none")
    return options


def prepare(options: Any) -> None:
    if options.shape:
        save_shape(options)
    run_stages(load_config(options.config, options.overrides), Run(options.folder / "run", seed=1), last="ingest")


def measure(options: Any) -> dict[str, float]:
    shape = [f"model.name={options.folder / 'model'}", "model.attention=causal"] if options.shape else []
    slots = ROWS[options.row]
    config = load_config(options.config, [*options.overrides, *shape, f"memory.slots={slots}"])
    run = Run(options.folder / "run", seed=1)
    task = show_window(build_task(config, run), config.memory)
    model = load_model(config.model).eval()
    utterances = [u for dialogue in load_dialogues(run, "train") for u in dialogue.utterances]

    def plant(start: int, turns: int, period: int) -> list[PromptTree]:
        said = [replace(utterances[start + turn % period], id=str(turn)) for turn in range(turns)]
        dialogue = replace(load_dialogues(run, "train")[0], id=f"from-{start}", utterances=tuple(said))
        return list(build_trees(dialogue, NOTHING_KNOWN, task, asked=range(turns), losses=Counter()))

    def answer(groups: list[list[PromptTree]]) -> Iterator[Any]:
        if options.row == "recipe":
            return (label for group in groups for label in follow_recipe(model, task, group))
        return answer_with_memory(
            model,
            task.tokens,
            task.wording,
            groups,
            config.memory,
            both_ways=config.model.both_ways,
            row_tokens=config.predict.row_tokens,
        )

    for _ in answer([plant(0, 3, 3)]):  # warms up
        pass
    reset_peak_memory()
    groups = [plant(100 * place, options.turns, PERIOD) for place in range(options.conversations)]
    start = time.perf_counter()
    turns = sum(1 for _ in answer(groups))
    found = {"turns": turns, "speed": turns / (time.perf_counter() - start), "peak": peak_memory_mib()}
    if options.long:
        found |= follow(
            lambda turns: answer([plant(100 * slot, turns, PERIOD) for slot in range(slots)]), options.long, slots
        )
    return found


def follow(begin: Callable[[int], Iterator[Any]], long: int, slots: int) -> dict[str, float]:
    """Return milliseconds a turn at some places of long conversations, and how their end compares with their beginning.

    `begin` begins as many conversations as there are slots, of so many turns.
    """

    def advance(answers: Iterator[Any]) -> float:
        start = time.perf_counter()
        for _ in range(slots):
            next(answers)
        return 1000 * (time.perf_counter() - start) / slots

    old, times, peaks = begin(long), list[float](), list[float]()
    for turn in range(long - COMPARED):
        if turn in (EARLY, long - COMPARED - WATCHED):
            reset_peak_memory()
        times.append(advance(old))
        if turn in (EARLY + WATCHED - 1, long - COMPARED - 1):
            peaks.append(peak_memory_mib())
    new = begin(EARLY + COMPARED)
    for _ in range(EARLY):
        advance(new)
    last, first = np.array([(advance(old), advance(new)) for _ in range(COMPARED)]).sum(axis=0)
    found = {str(place): sum(times[place : place + PERIOD]) / PERIOD for place in find_places(long)}
    return found | {"time at the end": last / first, "memory at the end": peaks[1] / peaks[0]}


def find_places(long: int) -> list[int]:
    """Return the turns of a long conversation from which on time is measured."""
    return [place for place in PLACES if place + PERIOD <= long - COMPARED]


def follow_recipe(model: Any, task: Task, group: Iterator[PromptTree]) -> Iterator[str]:
    """Temp-LoRA, turn by turn: answer, then two epochs on what was said. The adapter is discarded at the end."""
    model.set_attn_implementation("sdpa")
    lora = LoraConfig(r=64, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=5e-5)
    answers = {label: ids[0] for label, ids in task.tokens.answers.items()}
    told: dict[int, str] = {}
    for tree in group:
        (branch,) = tree.branches
        prompt = task.tokens.ids(unroll(tree, branch, told, task.wording))
        with torch.inference_mode():
            logits = adapted(torch.tensor([prompt]), use_cache=False, logits_to_keep=1).logits[0, -1]
        told[branch.turn] = max(answers, key=lambda label: logits[answers[label]].item())
        before = task.tokens.ids(tree.trunk[: tree.spans[-1][0]])
        words = task.tokens.ids(tree.trunk[slice(*tree.spans[-1])])
        for _ in range(2):
            optimizer.zero_grad()
            kept = adapted(torch.tensor([[*before, *words]]), use_cache=False, logits_to_keep=len(words) + 1).logits[0]
            cross_entropy(kept[:-1].float(), torch.tensor(words)).backward()
            optimizer.step()
        yield told[branch.turn]
    adapted.unload()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
