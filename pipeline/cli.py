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
    ablate = _add_command(commands, "ablate", "run a configuration with one thing changed at a time, and compare")
    ablate.add_argument(
        "--variants", default="parts", metavar="TABLE", help="what to change: parts, memory, or a YAML file like them"
    )
    ablate.set_defaults(command=_ablate)
    summary = "recognise emotions in what is typed, line by line"
    chat = commands.add_parser("chat", help=summary, description=f"{summary}.".capitalize(), allow_abbrev=False)
    chat.add_argument("run", type=Path, metavar="RUN", help="a run folder, or the folder of an adapter")
    chat.add_argument("--seed", type=int, help="which seed's adapter of the run")
    begun = chat.add_mutually_exclusive_group()
    begun.add_argument("--memory", action="store_true", help="write what is said and felt into a temporary memory")
    begun.add_argument("--resume", type=Path, metavar="FILE", help="take up a conversation that was saved")
    chat.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    chat.set_defaults(command=_chat)
    summary = "list the shipped configurations, or print one with all its keys"
    configs = commands.add_parser("configs", help=summary, description=f"{summary}.".capitalize(), allow_abbrev=False)
    configs.add_argument("config", nargs="?", metavar="CONFIG", help="print this one, to be saved and changed")
    configs.set_defaults(command=_configs)
    return parser


def _add_command(commands: "argparse._SubParsersAction", name: str, summary: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=f"{summary}.".capitalize(), allow_abbrev=False)
    command.add_argument("config", metavar="CONFIG", help="a shipped configuration or a YAML file")
    command.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    command.add_argument("--seed", type=int, help="use this seed in place of the configuration's")
    command.add_argument("--seeds", type=_count, default=1, metavar="N", help="N seeds, from the first one on")
    command.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where run folders are")
    return command


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
    from .run import Stale, forecast

    config, run = _load(options)
    # To look at prompts that are there already, the run folder is not held.
    if not options.preview or any(isinstance(found, Stale) for _, found in forecast(config, run, "prompts", "prompts")):
        _run(options)
    if options.preview:
        module = importlib.import_module(STAGES["prompts"].module)
        say(module.preview(config, run, options.preview))


def _ablate(options: argparse.Namespace) -> None:
    from .ablation import ablate, read_variants, write_table
    from .console import say

    variants = read_variants(options.variants)
    _, run = _load(options)
    say(write_table(ablate(options.config, options.overrides, run, variants, Path(options.variants).stem)).rstrip())


def _chat(options: argparse.Namespace) -> None:
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
