"""The command `erckit`: run stages, list configurations, look at prompts."""

# Nothing heavy is imported before the arguments are parsed: help and typing errors answer at once.
import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from .stages import STAGES

if TYPE_CHECKING:
    from .config import Config
    from .run import Run

CORPORA = ("emorynlp", "meld")  # those of `fetch.RELEASES`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status: 0, 2 for an error of the user's, 130 when interrupted."""
    options = _parser().parse_args(arguments)
    from ..data.errors import DataError
    from .console import quiet_libraries
    from .run import RunError
    from .yaml_text import ConfigError

    quiet_libraries()
    try:
        options.command(options)
    except KeyboardInterrupt:
        if os.environ.get("ERCKIT_DEBUG") == "1":
            raise
        sys.stderr.write("\nerckit: interrupted; the same command continues where it stopped.\n")
        return 130
    except (DataError, ConfigError, RunError, OSError, UnicodeDecodeError) as error:
        if os.environ.get("ERCKIT_DEBUG") == "1":
            raise
        sys.stderr.write(f"erckit: {_describe(error)}\n")
        return 2
    return 0


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}. Check the path, its permissions and the space on the disk."
    if isinstance(error, UnicodeDecodeError):
        found = error.object[max(error.start - 30, 0) : error.end + 30]
        return f"expected UTF-8, found other bytes ({error.reason}) in {found!r}. Save the file they stand in as UTF-8."
    return str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="erckit",
        description="Recognise the emotion of every utterance in a conversation, stage by stage or all at once.",
        epilog="CONFIG is the name of a shipped configuration (see `erckit configs`) or a YAML file.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"erckit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = _add_command(commands, "run", "run all stages that are not up to date")
    run.add_argument("--from", dest="first", choices=STAGES, default=next(iter(STAGES)), help="first stage to run")
    run.add_argument("--to", dest="last", choices=STAGES, default=next(reversed(STAGES)), help="last stage to run")
    run.add_argument("--dry-run", action="store_true", help="only say what would run, and why")
    run.set_defaults(command=_run)
    for name in STAGES:
        stage = _add_command(commands, name, f"run the stage {name}; those before it must be up to date")
        stage.set_defaults(command=_run, first=name, last=name, dry_run=False)
        if name == "prompts":
            stage.add_argument("--preview", type=_count, metavar="N", help="show N prompts")
            stage.set_defaults(command=_prompts)
        if name == "predict":
            _add_labelling(stage)
    ablate = _add_command(commands, "ablate", "run a configuration with one thing changed at a time, and compare")
    ablate.add_argument(
        "--variants", default="parts", metavar="TABLE", help="what to change: parts, memory, or a YAML file like them"
    )
    ablate.set_defaults(command=_ablate)
    fetch = _add_parser(commands, "fetch", "download a public corpus, or what is missing of it, and check it")
    fetch.add_argument("corpus", choices=CORPORA, help="which one: %(choices)s", metavar="CORPUS")
    fetch.add_argument("folder", type=Path, metavar="DIR", help="the folder for its files, then a data.path")
    fetch.add_argument("--mirror", metavar="ADDRESS", help="where else its files lie, each right under this address")
    fetch.set_defaults(command=_fetch)
    sweep = _add_command(commands, "sweep", "answer dev with every combination of some settings, and choose the best")
    sweep.add_argument("grid", type=Path, metavar="GRID.yaml", help="keys, each with a list of values")
    sweep.set_defaults(command=_sweep)
    _add_looks_at_answers(commands)
    chat = _add_model_command(commands, "chat", "recognise emotions in what is typed, line by line")
    begun = chat.add_mutually_exclusive_group()
    begun.add_argument("--memory", action="store_true", help="write what is said and felt into a temporary memory")
    begun.add_argument("--resume", type=Path, metavar="FILE", help="take up a conversation that was saved")
    chat.set_defaults(command=_chat)
    merge = _add_model_command(commands, "merge", "write the base model with the adapter merged into it")
    merge.add_argument("folder", type=Path, metavar="FOLDER", help="where to")
    merge.set_defaults(command=_merge)
    push = _add_model_command(commands, "push", "upload the adapter, or a merged model, to the Hugging Face hub")
    push.add_argument("repository", metavar="OWNER/NAME", help="the repository there; it is made if need be")
    push.add_argument("--public", action="store_true", help="let everybody see it")
    push.set_defaults(command=_push)
    configs = _add_parser(commands, "configs", "list the shipped configurations, or print one with all its keys")
    configs.add_argument("config", nargs="?", metavar="CONFIG", help="print this one, to be saved and changed")
    configs.set_defaults(command=_configs)
    return parser


def _add_looks_at_answers(commands: "argparse._SubParsersAction") -> None:
    compare = _add_parser(commands, "compare", "compare the answers of two runs, dialogue by dialogue")
    compare.add_argument("run_a", type=Path, metavar="RUN_A", help="a run folder, with all its seeds")
    compare.add_argument("run_b", type=Path, metavar="RUN_B", help="another one over the same corpus")
    compare.add_argument("--output", type=Path, metavar="FOLDER", help="also write compare.md and compare.json there")
    compare.set_defaults(command=_compare)
    score = _add_parser(commands, "score", "measure anybody's answers, without a model")
    score.add_argument("answers", type=Path, metavar="PREDICTIONS", help="CSV or JSON Lines: an utterance and a label")
    score.add_argument("gold", type=Path, metavar="GOLD", help="a corpus, or a file of dialogues in erckit's form")
    score.set_defaults(command=_score)
    for command in (compare, score):
        command.add_argument("--split", choices=("dev", "test"), default="test", help="default: test")
    mislabels = _add_parser(commands, "mislabels", "list the training utterances whose label surprises the model most")
    mislabels.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    mislabels.add_argument("--seed", type=int, help="which seed's adapter of the run")
    mislabels.add_argument("--count", type=_count, default=100, metavar="N", help="how many; default: 100")
    mislabels.set_defaults(command=_mislabels)


def _add_parser(commands: "argparse._SubParsersAction", name: str, summary: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=summary, description=f"{summary}.".capitalize(), allow_abbrev=False)


def _add_command(commands: "argparse._SubParsersAction", name: str, summary: str) -> argparse.ArgumentParser:
    command = _add_parser(commands, name, summary)
    command.add_argument("config", metavar="CONFIG", help="a shipped configuration or a YAML file")
    command.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    command.add_argument("--seed", type=int, help="use this seed in place of the configuration's")
    command.add_argument("--seeds", type=_count, default=1, metavar="N", help="N seeds, from the first one on")
    command.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are")
    return command


def _add_model_command(commands: "argparse._SubParsersAction", name: str, summary: str) -> argparse.ArgumentParser:
    command = _add_parser(commands, name, summary)
    command.add_argument("run", type=Path, metavar="RUN", help="a run folder, or that of an adapter or a merged model")
    command.add_argument("--seed", type=int, help="which seed's adapter of the run")
    return command


def _add_labelling(predict: argparse.ArgumentParser) -> None:
    own = predict.add_argument_group(
        "conversations of your own", "CONFIG is a run folder then, or the folder of an adapter, and --set sets memory.*"
    )
    own.add_argument(
        "--input", metavar="FILE", help="label these, in erckit's form; - is standard input, to standard output"
    )
    own.add_argument("--output", type=Path, metavar="FILE", help="where to; default: INPUT.labelled.jsonl")
    own.add_argument("--memory", action="store_true", help="write what is said and felt into a temporary memory")
    predict.set_defaults(command=_predict)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1 on")
    return int(text)


def _load(options: argparse.Namespace) -> "tuple[Config, Run]":
    from .config import load_config
    from .run import Run

    config = load_config(options.config, options.overrides, options.seed)
    seeds = tuple(range(config.seed, config.seed + options.seeds))
    return config, Run(options.runs / config.name, config.seed, seeds)


def _run(options: argparse.Namespace) -> None:
    from .console import say
    from .run import Fresh, forecast, run_stages

    config, run = _load(options)
    if not options.dry_run:
        run_stages(config, run, options.first, options.last)
        return
    for label, state in forecast(config, run, options.first, options.last):
        say(f"{label}: " + ("up to date" if isinstance(state, Fresh) else f"would run, {state.reason}"))


def _prompts(options: argparse.Namespace) -> None:
    from .console import say

    _run(options)
    if options.preview:
        module = importlib.import_module(STAGES["prompts"].module)
        say(module.preview(*_load(options), options.preview))


def _predict(options: argparse.Namespace) -> None:
    from .yaml_text import ConfigError

    if options.input is None:
        if options.output or options.memory:
            raise ConfigError("--output and --memory go with --input FILE, the conversations to label. Name it.")
        return _run(options)
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
        recognizer = Recognizer.load(options.config, options.seed)
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


def _ablate(options: argparse.Namespace) -> None:
    from .ablation import ablate, describe_rows, read_variants
    from .console import say

    variants = read_variants(options.variants)
    _, run = _load(options)
    say(describe_rows(ablate(options.config, options.overrides, run, variants, Path(options.variants).stem)).rstrip())


def _sweep(options: argparse.Namespace) -> None:
    from .console import say
    from .sweep import describe_rows, read_grid, sweep

    grid = read_grid(options.grid)
    _, run = _load(options)
    say(describe_rows(sweep(options.config, options.overrides, run, grid, options.grid.stem)))
    folder = run.folder / "sweep"
    seeds = f" --seeds {options.seeds}" if options.seeds > 1 else ""
    say(f"Test with the best: erckit run {folder / options.grid.stem}.chosen.yaml --runs {folder}{seeds}")


def _compare(options: argparse.Namespace) -> None:
    from .compare import compare_runs, describe_comparison, write_comparison
    from .console import say

    found = compare_runs(options.run_a, options.run_b, options.split)
    say(describe_comparison(found).rstrip())
    if options.output:
        write_comparison(options.output, found)


def _score(options: argparse.Namespace) -> None:
    from .console import say
    from .score import describe_scores, score_answers

    say(describe_scores(score_answers(options.answers, options.gold, options.split)).rstrip())


def _mislabels(options: argparse.Namespace) -> None:
    from .console import say
    from .mislabels import find_mislabels

    path, found = find_mislabels(options.run, options.seed, options.count)
    say(f"{len(found):,} utterances in {path}, such as")
    for one in found[:5]:
        say(f"  {one.utterance}: {one.gold} ({one.gold_probability:.4f}), not {one.answer}? {one.speaker}: {one.text}")


def _fetch(options: argparse.Namespace) -> None:
    from .console import say
    from .fetch import RELEASES, fetch

    say(fetch(RELEASES[options.corpus], options.folder, options.mirror))


def _chat(options: argparse.Namespace) -> None:
    from .chat import chat
    from .console import say
    from .recognizer import Recognizer

    recognizer = Recognizer.load(options.run, options.seed)
    if options.resume:
        conversation = recognizer.resume(options.resume)
    else:
        conversation = recognizer.conversation(recognizer.config.memory if options.memory else None)
    for line in chat(conversation, sys.stdin):
        say(line)


def _merge(options: argparse.Namespace) -> None:
    from .adapter import find_adapter
    from .console import say
    from .sharing import merge_adapter

    say(merge_adapter(find_adapter(options.run, options.seed), options.folder))


def _push(options: argparse.Namespace) -> None:
    from .adapter import find_adapter
    from .console import say
    from .sharing import push

    say(push(find_adapter(options.run, options.seed), options.repository, public=options.public))


def _configs(options: argparse.Namespace) -> None:
    from .config import annotate_config, load_config, shipped_configs
    from .console import say

    if options.config:
        say(annotate_config(load_config(options.config)).rstrip())
        return
    shipped = shipped_configs()
    width = max(map(len, shipped), default=0)
    for name, summary in shipped.items():
        say(f"{name:{width}}  {summary}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
