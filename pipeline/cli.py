"""The command `erckit`: its arguments, and how errors end."""

# Nothing heavy is imported before the arguments are parsed: help and typing errors answer at once.
import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from . import actions
from .stages import STAGES

CORPORA = ("emorynlp", "meld")  # those of `fetch.RELEASES`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status: 0, 2 for an error of the user's, 130 when interrupted, 141 unread."""
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
    except BrokenPipeError:  # whoever read has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or else Python complains at its end
        return 141
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
    run.set_defaults(command=actions.run_run)
    for name in STAGES:
        stage = _add_command(commands, name, f"run the stage {name}; those before it must be up to date")
        stage.set_defaults(command=actions.run_run, first=name, last=name, dry_run=False)
        if name == "prompts":
            stage.add_argument("--preview", type=_count, metavar="N", help="show N prompts")
            stage.set_defaults(command=actions.run_prompts)
        if name == "predict":
            _add_labelling(stage)
    ablate = _add_command(commands, "ablate", "run a configuration with one thing changed at a time, and compare")
    ablate.add_argument(
        "--variants", default="parts", metavar="TABLE", help="what to change: parts, memory, or a YAML file like them"
    )
    ablate.set_defaults(command=actions.run_ablate)
    fetch = _add_parser(commands, "fetch", "download a public corpus, or what is missing of it, and check it")
    fetch.add_argument("corpus", choices=CORPORA, help="which one: %(choices)s", metavar="CORPUS")
    fetch.add_argument("folder", type=Path, metavar="DIR", help="the folder for its files, then a data.path")
    fetch.add_argument("--mirror", metavar="ADDRESS", help="where else its files lie, each right under this address")
    fetch.set_defaults(command=actions.run_fetch)
    sweep = _add_command(commands, "sweep", "answer dev with every combination of some settings, and choose the best")
    sweep.add_argument("grid", type=Path, metavar="GRID.yaml", help="keys, each with a list of values")
    sweep.set_defaults(command=actions.run_sweep)
    _add_looks_at_answers(commands)
    chat = _add_model_command(commands, "chat", "recognise emotions in what is typed, line by line")
    begun = chat.add_mutually_exclusive_group()
    begun.add_argument("--memory", action="store_true", help="write what is said and felt into a temporary memory")
    begun.add_argument("--resume", type=Path, metavar="FILE", help="take up a conversation that was saved")
    chat.set_defaults(command=actions.run_chat)
    merge = _add_model_command(commands, "merge", "write the base model with the adapter merged into it")
    merge.add_argument("folder", type=Path, metavar="FOLDER", help="where to")
    merge.set_defaults(command=actions.run_merge)
    push = _add_model_command(commands, "push", "upload the adapter, or a merged model, to the Hugging Face hub")
    push.add_argument("repository", metavar="OWNER/NAME", help="the repository there; it is made if need be")
    push.add_argument("--public", action="store_true", help="let everybody see it")
    push.set_defaults(command=actions.run_push)
    configs = _add_parser(commands, "configs", "list the shipped configurations, or print one with all its keys")
    configs.add_argument("config", nargs="?", metavar="CONFIG", help="print this one, to be saved and changed")
    configs.set_defaults(command=actions.run_configs)
    return parser


def _add_looks_at_answers(commands: "argparse._SubParsersAction") -> None:
    compare = _add_parser(commands, "compare", "compare the answers of two runs, dialogue by dialogue")
    compare.add_argument("run_a", type=Path, metavar="RUN_A", help="a run folder, with all its seeds")
    compare.add_argument("run_b", type=Path, metavar="RUN_B", help="another one over the same corpus")
    compare.add_argument("--output", type=Path, metavar="FOLDER", help="write compare.{html,md,json} there too")
    compare.set_defaults(command=actions.run_compare)
    score = _add_parser(commands, "score", "measure anybody's answers, without a model")
    score.add_argument("answers", type=Path, metavar="PREDICTIONS", help="CSV or JSON Lines: an utterance and a label")
    score.add_argument("gold", type=Path, metavar="GOLD", help="a corpus, or a file of dialogues in erckit's form")
    score.set_defaults(command=actions.run_score)
    for command in (compare, score):
        command.add_argument("--split", choices=("dev", "test"), default="test", help="default: test")
    mislabels = _add_model_command(
        commands, "mislabels", "list the training utterances whose label surprises the model most"
    )
    mislabels.add_argument("--count", type=_count, default=100, metavar="N", help="how many; default: 100")
    mislabels.set_defaults(command=actions.run_mislabels)


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
    _add_trust(command)
    return command


def _add_trust(command: "argparse._ActionsContainer") -> None:
    command.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")


def _add_labelling(predict: argparse.ArgumentParser) -> None:
    own = predict.add_argument_group(
        "conversations of your own", "CONFIG is a run folder then, or the folder of an adapter, and --set sets memory.*"
    )
    own.add_argument(
        "--input", metavar="FILE", help="label these, in erckit's form; - is standard input, to standard output"
    )
    own.add_argument("--output", type=Path, metavar="FILE", help="where to; default: INPUT.labelled.jsonl")
    own.add_argument("--memory", action="store_true", help="write what is said and felt into a temporary memory")
    _add_trust(own)
    predict.set_defaults(command=actions.run_predict)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
