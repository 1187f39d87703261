"""What the commands of `erckit` do with their arguments: one function a command, and what it tells the user."""

# Nothing heavy is imported before it is needed: help and typing errors answer at once.
import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .stages import STAGES

if TYPE_CHECKING:
    from .adapter import Found
    from .config import Config
    from .run import Run


def load(options: argparse.Namespace) -> "tuple[Config, Run]":
    from .config import load_config
    from .run import Run

    config = load_config(options.config, options.overrides, options.seed)
    seeds = tuple(range(config.seed, config.seed + options.seeds))
    return config, Run(options.runs / config.name, config.seed, seeds)


def run_run(options: argparse.Namespace) -> None:
    from .console import say
    from .run import Fresh, forecast, run_stages

    config, run = load(options)
    if not options.dry_run:
        run_stages(config, run, options.first, options.last)
        return
    for label, state in forecast(config, run, options.first, options.last):
        say(f"{label}: " + ("up to date" if isinstance(state, Fresh) else f"would run, {state.reason}"))


def run_prompts(options: argparse.Namespace) -> None:
    from .console import say
    from .run import Stale, forecast

    config, run = load(options)
    # To look at prompts that are there already, the run folder is not held.
    if not options.preview or any(isinstance(found, Stale) for _, found in forecast(config, run, "prompts", "prompts")):
        run_run(options)
    if options.preview:
        module = importlib.import_module(STAGES["prompts"].module)
        say(module.preview(config, run, options.preview))


def run_predict(options: argparse.Namespace) -> None:
    from .yaml_text import ConfigError

    if options.input is None:
        if options.output or options.memory:
            raise ConfigError("--output and --memory go with --input FILE, the conversations to label. Name it.")
        return run_run(options)
    if options.seeds > 1 or not all(override.startswith("memory.") for override in options.overrides):
        raise ConfigError("with --input, --set sets memory.* alone, and there is one seed: all else is as trained.")
    if options.input == "-" and options.output:
        raise ConfigError("--input - writes to standard output. Leave out --output.")
    _label(options)


def _label(options: argparse.Namespace) -> None:
    from contextlib import redirect_stdout

    from .config import change_config
    from .console import say
    from .labelling import label_file, label_lines
    from .recognizer import Recognizer

    # Notes go elsewhere where answers go to standard output.
    with redirect_stdout(sys.stderr if options.input == "-" else sys.stdout):
        recognizer = Recognizer.load(options.config, options.seed, trust_remote_code=options.trust_remote_code)
        memory = change_config(recognizer.config, options.overrides).memory if options.memory else None
    if options.input == "-":
        for line in label_lines(recognizer, sys.stdin.buffer, memory):
            sys.stdout.buffer.write(line)
        return
    source = Path(options.input)
    target = options.output or source.with_suffix(".labelled.jsonl")
    counts = label_file(recognizer, source, target, memory)
    kinds = ("dialogues", "utterances", "turns written", "writes undone")
    done = [f"{counts.pop(kind):,} {kind}" for kind in kinds if kind in counts]
    say(f"{target}: {', '.join(done)}")
    for repair, count in counts.items():
        say(f"  note: {count:,} repaired: {repair}.")


def run_ablate(options: argparse.Namespace) -> None:
    from .ablation import ablate, describe_rows, read_variants
    from .console import say

    variants = read_variants(options.variants)
    _, run = load(options)
    say(describe_rows(ablate(options.config, options.overrides, run, variants, Path(options.variants).stem)).rstrip())


def run_sweep(options: argparse.Namespace) -> None:
    from .console import say
    from .sweep import describe_rows, read_grid, sweep

    grid = read_grid(options.grid)
    _, run = load(options)
    say(describe_rows(sweep(options.config, options.overrides, run, grid, options.grid.stem)))
    folder = run.folder / "sweep"
    seeds = f" --seeds {options.seeds}" if options.seeds > 1 else ""
    say(f"Test with the best: erckit run {folder / options.grid.stem}.chosen.yaml --runs {folder}{seeds}")


def run_compare(options: argparse.Namespace) -> None:
    from .compare import compare_runs, describe_comparison, write_comparison
    from .console import say

    found = compare_runs(options.run_a, options.run_b, options.split)
    say(describe_comparison(found).rstrip())
    if options.output:
        write_comparison(options.output, found)


def run_score(options: argparse.Namespace) -> None:
    from .console import say
    from .score import describe_scores, score_answers

    say(describe_scores(score_answers(options.answers, options.gold, options.split)).rstrip())


def run_mislabels(options: argparse.Namespace) -> None:
    from .console import say
    from .mislabels import find_mislabels

    path, found = find_mislabels(options.run, options.seed, options.count, trust_remote_code=options.trust_remote_code)
    say(f"{len(found):,} utterances in {path}, such as")
    for one in found[:5]:
        say(f"  {one.utterance}: {one.gold} ({one.gold_probability:.4f}), not {one.answer}? {one.speaker}: {one.text}")


def run_fetch(options: argparse.Namespace) -> None:
    from .console import say
    from .fetch import RELEASES, fetch

    say(fetch(RELEASES[options.corpus], options.folder, options.mirror))


def run_chat(options: argparse.Namespace) -> None:
    from .chat import chat
    from .console import say
    from .recognizer import Recognizer

    recognizer = Recognizer.load(options.run, options.seed, trust_remote_code=options.trust_remote_code)
    if options.resume:
        conversation = recognizer.resume(options.resume)
    else:
        conversation = recognizer.conversation(recognizer.config.memory if options.memory else None)
    for line in chat(conversation, sys.stdin):
        say(line)


def run_merge(options: argparse.Namespace) -> None:
    from .console import say
    from .sharing import merge_adapter

    say(merge_adapter(_find(options), options.folder))


def run_push(options: argparse.Namespace) -> None:
    from .console import say
    from .sharing import push

    say(push(_find(options), options.repository, public=options.public))


def _find(options: argparse.Namespace) -> "Found":
    from .adapter import find_adapter

    return find_adapter(options.run, options.seed, trust_remote_code=options.trust_remote_code)


def run_configs(options: argparse.Namespace) -> None:
    from .config import annotate_config, load_config, shipped_configs
    from .console import say

    if options.config:
        say(annotate_config(load_config(options.config)).rstrip())
        return
    shipped = shipped_configs()
    width = max(map(len, shipped), default=0)
    for name, summary in shipped.items():
        say(f"{name:{width}}  {summary}".rstrip())
