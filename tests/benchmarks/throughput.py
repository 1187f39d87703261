"""How fast prompts are trained on and answered, unrolled and packed, in one run on the same data and model.

    python tests/benchmarks/throughput.py emorynlp-minilm --dialogues 24
    python tests/benchmarks/throughput.py emorynlp-minilm --dialogues 2 --shape qwen2.5-0.5b

prints one table. Every row runs in a process of its own, so that its peak memory is its own. All rows tell the same
in their prompts: full history, general and retrieved facts, recent emotions (gold, so that all can be asked at once;
row g: the model's own). Floating-point operations are counted as 2 for each weight of the layers and token, forward,
and twice that with the backward pass (frozen weights need no gradient); attention and the head are not counted, and
what packed rows leave out of their last layer is.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from erckit.data.files import read_json, write_json
from erckit.data.labels import LabelSet
from erckit.pipeline.artefacts import load_labels, load_trees, load_wording
from erckit.pipeline.backbone import load_model, load_tokenizer, lora, mixes_precision
from erckit.pipeline.config import Config, load_config
from erckit.pipeline.epochs import Batches, TrainingPrompts
from erckit.pipeline.measure import peak_memory_mib, reset_peak_memory
from erckit.pipeline.run import Run, run_stages
from erckit.pipeline.scoring import answer_log_likelihoods, answer_trees, fill_rows, find_leaves
from erckit.pipeline.stages.train import build_arguments
from erckit.prompts.packing import TreeTokens
from erckit.prompts.tokens import PieceTokenizer
from erckit.prompts.tree import PromptTree, gold_emotions, read_aloud, unroll
from erckit.prompts.wording import Piece, Wording

ROWS = {
    "a": "train  TRL SFTTrainer, unrolled, float32",
    "b": "train  erckit, unrolled",
    "c": "train  erckit, packed",
    "d": "answer generate, batch 16, 10 tokens",
    "e": "answer erckit, unrolled",
    "f": "answer erckit, packed",
    "g": "answer erckit, turn by turn, cached",
}
SHAPES = {
    "qwen2.5-0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "num_attention_heads": 14},
    "qwen2.5-3b": {"hidden_size": 2048, "num_hidden_layers": 36, "intermediate_size": 11008, "num_attention_heads": 16},
}
STEP, ROW_TOKENS = 32, 4096


def main() -> None:
    options = parse()
    if options.row:
        write_json(options.folder / f"{options.row}.json", measure(options))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        prepare(options)
        print(f"{options.config}, {options.shape or 'its model'}, {options.dialogues} dialogues of dev")
        print(f"{'row':45} {'utt./s':>8} {'tokens/utt.':>11} {'peak GiB':>9} {'of matmul':>9} {'times':>7}")
        first: dict[str, float] = {}
        for row in options.rows:
            command = [sys.executable, __file__, *sys.argv[1:], "--row", row, "--folder", folder]
            subprocess.run(command, check=True, stderr=options.folder.joinpath("errors").open("w"))
            found = read_json(options.folder / f"{row}.json")
            base = first.setdefault(ROWS[row].split()[0], found["speed"])
            print(
                f"({row}) {ROWS[row]:41} {found['speed']:8.2f} {found['tokens']:11.1f} {found['peak'] / 1024:9.2f} "
                f"{100 * found['share']:8.0f}% {found['speed'] / base:6.2f}x",
                flush=True,
            )


def parse() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a configuration; its corpus and prompts are used, with full history")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--dialogues", type=int, default=24, help="dialogues of dev, evenly spread")
    parser.add_argument("--shape", choices=SHAPES, help="a model of random weights in place of the configuration's")
    parser.add_argument("--rows", default="".join(ROWS), help="which rows, as letters")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def load(options: Any) -> tuple[Config, Run]:
    model = [f"model.name={options.folder / 'model'}"] if options.shape else []
    # Ten positions are left for what row d generates.
    room = ["prompts.history=full", "prompts.max_tokens=500"]
    config = load_config(options.config, [*options.overrides, *model, *room])
    return config, Run(options.folder / "run", seed=1)


def prepare(options: Any) -> None:
    if options.shape:
        save_shape(options)
    run_stages(*load(options), last="prompts")


def save_shape(options: Any) -> None:
    """Save a model of random weights, and the configuration's tokenizer beside it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.for_model("qwen2", vocab_size=151_936, num_key_value_heads=2, **SHAPES[options.shape])
    AutoModelForCausalLM.from_config(shape).save_pretrained(options.folder / "model")
    load_tokenizer(load_config(options.config).model).save_pretrained(options.folder / "model")


@dataclass(frozen=True)
class Setting:
    """What a row works with; `row` is its letter."""

    row: str
    config: Config
    run: Run
    model: Any
    tokens: PieceTokenizer
    wording: Wording
    labels: LabelSet
    trees: list[PromptTree]

    def prompts(self) -> list[tuple[tuple[Piece, ...], str]]:
        """Every unrolled prompt with its answer, recent emotions gold."""
        gold = gold_emotions(self.trees)
        return [
            (unroll(tree, branch, gold[tree.dialogue], self.wording), str(branch.label))
            for tree in self.trees
            for branch in tree.branches
        ]


@dataclass(frozen=True)
class Timing:
    utterances: int
    tokens: int
    seconds: float


def measure(options: Any) -> dict[str, float]:
    config, run = load(options)
    wording, labels = load_wording(run), load_labels(run)
    tokens = PieceTokenizer(load_tokenizer(config.model), labels, wording, chat=config.prompts.chat)
    trees = list(load_trees(run, "dev", wording))
    names = list(dict.fromkeys(tree.dialogue for tree in trees))
    chosen = {names[place * len(names) // options.dialogues] for place in range(options.dialogues)}
    trees = [tree for tree in trees if tree.dialogue in chosen]
    model = load_model(config.model)
    weights = sum(p.numel() for name, p in model.named_parameters() if "layer" in name)
    reset_peak_memory()
    timing = WORK[options.row](Setting(options.row, config, run, model, tokens, wording, labels, trees))
    peak = torch.cuda.max_memory_allocated() / 2**20 if model.device.type == "cuda" else peak_memory_mib()
    lower = options.row in "bc" and mixes_precision(config.model)
    operations = 2 * weights * timing.tokens * (2 if options.row in "abc" else 1)
    return {
        "speed": timing.utterances / timing.seconds,
        "tokens": timing.tokens / timing.utterances,
        "peak": peak,
        "share": operations / timing.seconds / matmul_peak(model.device, torch.bfloat16 if lower else model.dtype),
    }


def matmul_peak(device: Any, dtype: torch.dtype, size: int = 2048) -> float:
    """Return the operations a second of square matrix products: what the device reaches at best."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def train_plainly(setting: Setting) -> Timing:
    """TRL as its documentation has it: prompt and completion as text, lengths grouped, the loss on the completion."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    setting.model.set_attn_implementation("sdpa")
    tokenizer = setting.tokens.tokenizer
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.sep_token  # TRL ends completions with it
    answer = setting.wording.text
    rows = [
        {"prompt": read_aloud(p for p in prompt if not p.control), "completion": answer("answer", label=label)}
        for prompt, label in setting.prompts()
    ]
    arguments = SFTConfig(
        output_dir=str(setting.run.folder / "plain"),
        num_train_epochs=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=STEP // 8,
        train_sampling_strategy="group_by_length",
        max_length=None,
        bf16=setting.model.device.type == "cuda",
        use_cpu=setting.model.device.type == "cpu",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    return time_training(
        SFTTrainer,
        lambda inputs: (len(inputs["input_ids"]), inputs["input_ids"].numel()),
        model=setting.model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        peft_config=lora(setting.config.model, rank=16, alpha=32, dropout=0.0),
    )


def train(setting: Setting) -> Timing:
    """erckit's trainer; row b asks about every utterance by itself, which is its unrolled prompt."""
    from erckit.pipeline.training import ErcTrainer
    from peft import get_peft_model

    batches = Batches(STEP, 1 if setting.row == "b" else setting.config.train.together, ROW_TOKENS)
    prompts = TrainingPrompts(
        setting.trees,
        setting.labels,
        setting.tokens,
        setting.wording,
        both_ways=False,
        batches=batches,
        noise=0.3,
        seed=1,
    )
    config = setting.config.model_copy(update={"train": setting.config.train.model_copy(update={"epochs": 1})})
    return time_training(
        ErcTrainer,
        lambda inputs: (len(inputs["row"].labels), sum(len(part.ids) for part in inputs["row"].parts)),
        model=get_peft_model(setting.model, lora(setting.config.model, rank=16, alpha=32, dropout=0.0)),
        args=build_arguments(config, setting.run, rows=len(prompts), rows_per_step=prompts.rows_per_step),
        prompts=prompts,
        weights=dict.fromkeys(setting.labels, 1.0),
        dev=setting.trees[:1],
        patience=1,
        mixed_precision=mixes_precision(setting.config.model),
        row_tokens=ROW_TOKENS,
        oracle=False,
    )


def time_training(trainer_class: Any, count: Callable[[Any], tuple[int, int]], **arguments: Any) -> Timing:
    """Time an epoch from the end of its first step, which warms up; `count` tells utterances and tokens of a pass."""
    from transformers import TrainerCallback

    done: list[tuple[int, int]] = []
    ends: list[tuple[int, float]] = []

    class Timed(trainer_class):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            done.append(count(inputs))
            return super().training_step(model, inputs, num_items_in_batch)

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append((len(done), time.perf_counter()))

    trainer = Timed(**arguments)
    trainer.add_callback(Clock())
    trainer.train()
    (warm, start), (last, end) = ends[0], ends[-1]
    utterances, tokens = (sum(counts) for counts in zip(*done[warm:last], strict=True))
    return Timing(utterances, tokens, end - start)


def generate(setting: Setting) -> Timing:
    """Free generation for every utterance, as published code of the field has it."""
    setting.model.set_attn_implementation("sdpa")
    prompts = sorted((setting.tokens.ids(prompt) for prompt, _ in setting.prompts()), key=len)
    batches = [prompts[start : start + 16] for start in range(0, len(prompts), 16)]
    pad, tokens = setting.tokens.tokenizer.pad_token_id, 0

    def answer(batch: list[list[int]]) -> int:
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in batch], device=setting.model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch], device=setting.model.device)
        found = setting.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=pad
        )
        return found.numel()

    answer(batches[0])
    start = time.perf_counter()
    for batch in batches:
        tokens += answer(batch)
    return Timing(len(prompts), tokens, time.perf_counter() - start)


def answer_unrolled(setting: Setting) -> Timing:
    """Every prompt by itself, as many in a forward pass as its budget holds."""
    gold = gold_emotions(setting.trees)
    labels, choices = list(setting.tokens.answers.values()), setting.tokens.choices
    leaves = find_leaves(labels, choices)
    parts = []
    for tree in setting.trees:
        packed = TreeTokens(tree, setting.tokens, setting.wording, both_ways=False)
        for place in range(len(tree.branches)):
            branch = packed.branch(place, gold[tree.dialogue])
            parts.append(packed.lay_out([(packed.after(place), branch, leaves)]))
    rows = list(fill_rows(parts, lambda part: part, ROW_TOKENS))
    with torch.inference_mode():
        answer_log_likelihoods(setting.model, rows[0], [labels] * len(rows[0]), choices)
        start = time.perf_counter()
        for row in rows:
            answer_log_likelihoods(setting.model, row, [labels] * len(row), choices)
    return Timing(len(parts), sum(len(part.ids) for part in parts), time.perf_counter() - start)


def answer_packed(setting: Setting) -> Timing:
    """Whole trees, or with row g turn by turn, each answer told to the next question of its speaker."""
    gold = gold_emotions(setting.trees) if setting.row == "f" else None
    tokens = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal tokens
        tokens += kwargs["input_ids"].numel()

    def answer(trees: list[PromptTree]) -> int:
        answers = answer_trees(
            setting.model,
            setting.tokens,
            setting.wording,
            trees,
            both_ways=False,
            conversations=setting.config.predict.conversations,
            row_tokens=ROW_TOKENS,
            gold=gold,
        )
        return sum(1 for _ in answers)

    answer(setting.trees[:1])
    setting.model.register_forward_pre_hook(count, with_kwargs=True)
    start = time.perf_counter()
    utterances = answer(setting.trees)
    return Timing(utterances, tokens, time.perf_counter() - start)


WORK: dict[str, Callable[[Setting], Timing]] = {
    "a": train_plainly,
    "b": train,
    "c": train,
    "d": generate,
    "e": answer_unrolled,
    "f": answer_packed,
    "g": answer_packed,
}

if __name__ == "__main__":
    main()
