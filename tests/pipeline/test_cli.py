"""The command: what it runs, what it says, and with which status it ends."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from erckit.data.errors import DataError
from erckit.pipeline import config as config_module
from erckit.pipeline.cli import main
from erckit.pipeline.stages import STAGES

SEEDED = [name for name, stage in STAGES.items() if stage.seeded]
SHARED_FIRST = [name for name in STAGES if name not in (*SEEDED, "report")]


def files_of(name: str) -> list[str]:
    """What a stage has to write for those that read it: the files they name, or any in the folders they name."""
    patterns = {p.partition("/")[2] for stage in STAGES.values() for p in stage.inputs if p.startswith(f"{name}/")}
    return sorted(f"{p}any.txt" if p.endswith("/") or not p else p for p in patterns) or ["any.txt"]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Fake stages and a configuration talk.yaml in the working folder. Holds what ran: (stage, seed), in order."""
    ran: list[tuple[str, int]] = []

    def work(name, config, run):
        ran.append((name, run.seed))
        for part in files_of(name):
            run.path(name, part).parent.mkdir(parents=True, exist_ok=True)
            run.path(name, part).write_text(f"{config.train.epochs} {run.seed}" if STAGES[name].seeded else name)
        return f"did {name}"

    for name, stage in STAGES.items():
        module = ModuleType(stage.module)
        vars(module)["run"] = lambda config, run, name=name: work(name, config, run)
        vars(module)["corpus_files"] = lambda config: []
        vars(module)["preview"] = lambda config, run, n: f"{n} prompts of {run.path('prompts').as_posix()}"
        monkeypatch.setitem(sys.modules, stage.module, module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ERCKIT_DEBUG", raising=False)
    Path("talk.yaml").write_text("name: talk\nseed: 3\ndata: {path: sample}\n")
    return ran


def break_stage(monkeypatch, name: str, error: BaseException) -> None:
    def fail(config, run):
        raise error

    monkeypatch.setattr(sys.modules[STAGES[name].module], "run", fail)


def test_run_does_every_stage_once_and_nothing_the_second_time(calls, capsys):
    assert main(["run", "talk.yaml"]) == 0
    assert calls == [(name, 3) for name in STAGES]
    assert {path.name for path in Path("runs/talk").iterdir()} == {
        *("config.yaml", ".lock", "seed-3", "report"),
        *SHARED_FIRST,
    }

    calls.clear()
    capsys.readouterr()
    assert main(["run", "talk.yaml"]) == 0
    assert calls == []
    assert capsys.readouterr().out == "".join(f"{name}: up to date\n" for name in STAGES)


def test_from_to_set_seed_and_runs(calls):
    assert main(["run", "talk.yaml", "--to", "train", "--runs", "elsewhere", "--seed", "7", "--set", "name=walk"]) == 0
    assert calls == [(name, 7) for name in [*SHARED_FIRST, "train"]]
    assert Path("elsewhere/walk/seed-7/train/manifest.json").is_file() and not Path("runs").exists()

    options = ["--runs", "elsewhere", "--seed", "7", "--set", "name=walk", "--set", "train.epochs=9"]
    calls.clear()
    assert main(["run", "talk.yaml", "--from", "train", *options]) == 0
    assert [name for name, _ in calls] == ["train", "predict", "evaluate", "report"]


def test_several_seeds_count_on_from_the_first(calls):
    assert main(["run", "talk.yaml", "--seeds", "3"]) == 0

    seeded = [(name, seed) for name in SEEDED for seed in (3, 4, 5)]
    assert calls == [*((name, 3) for name in SHARED_FIRST), *seeded, ("report", 3)]
    calls.clear()
    assert main(["report", "talk.yaml", "--seeds", "3"]) == 0
    assert calls == []


def test_a_stage_by_name_runs_alone_and_wants_those_before_it(calls, capsys):
    assert main(["profiles", "talk.yaml"]) == 2
    assert capsys.readouterr().err == (
        "erckit: ingest is not up to date (never run), and profiles builds on it. "
        "Use `erckit run` without --from, which brings it up to date first.\n"
    )
    for name in STAGES:
        assert main([name, "talk.yaml"]) == 0
    assert calls == [(name, 3) for name in STAGES]


def test_a_dry_run_says_what_would_run_and_why(calls, capsys):
    main(["run", "talk.yaml", "--to", "evaluate"])
    calls.clear()
    capsys.readouterr()

    assert main(["run", "talk.yaml", "--dry-run", "--set", "prompts.window=8", "--seeds", "2"]) == 0
    assert calls == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SHARED_FIRST) + 2 * len(SEEDED) + 1
    assert [line for line in lines if "up to date" not in line] == [
        "prompts: would run, prompts.window changed: 6 -> 8",
        "train (seed 3): would run, after prompts",
        "train (seed 4): would run, after prompts",
        "predict (seed 3): would run, after prompts",
        "predict (seed 4): would run, after prompts",
        "evaluate (seed 3): would run, after predict",
        "evaluate (seed 4): would run, after predict",
        "report: would run, after prompts",
    ]


def test_preview_shows_prompts_of_an_up_to_date_stage(calls, capsys):
    main(["run", "talk.yaml", "--to", "profiles"])
    capsys.readouterr()

    assert main(["prompts", "talk.yaml", "--preview", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 prompts of runs/talk/prompts"
    assert calls[-1] == ("prompts", 3)


@pytest.mark.parametrize("error", [DataError("talk.jsonl:1: bad"), FileNotFoundError("no talk.jsonl")])
def test_errors_of_the_user_are_one_message_and_status_2(calls, monkeypatch, capsys, error):
    break_stage(monkeypatch, "profiles", error)

    assert main(["run", "talk.yaml"]) == 2
    assert capsys.readouterr().err == f"erckit: {error}\n"
    monkeypatch.setenv("ERCKIT_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["run", "talk.yaml"])


def test_an_error_in_the_configuration_comes_before_anything_is_made(calls, capsys):
    assert main(["run", "talk.yaml", "--set", "train.epochs=0", "--set", "foo=1"]) == 2
    assert capsys.readouterr().err == (
        "erckit: talk.yaml: the configuration has 2 problems:\n"
        "  --set foo=1: foo: unknown key, expected one of name, seed, data, profiles, model, prompts, train, predict, "
        "memory, evaluate, report, processes\n"
        "  --set train.epochs=0: train.epochs: found 0, expected greater than or equal to 1\n"
    )
    assert main(["run", "nowhere.yaml"]) == 2
    assert not Path("runs").exists()


def test_without_answers_on_test_a_run_ends_before_the_report(calls, capsys):
    assert main(["run", "talk.yaml", "--set", "predict.test=false"]) == 2
    message = "predict.test is false, and the report is about test. Stop before it, with --to evaluate."
    assert capsys.readouterr().err == f"erckit: {message}\n" and not calls
    assert main(["run", "talk.yaml", "--set", "predict.test=false", "--to", "evaluate"]) == 0
    assert calls[-1] == ("evaluate", 3)


def test_an_interrupt_says_how_to_go_on(calls, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        break_stage(patch, "profiles", KeyboardInterrupt())
        assert main(["run", "talk.yaml"]) == 130
    assert capsys.readouterr().err == "\nerckit: interrupted; the same command continues where it stopped.\n"

    assert main(["run", "talk.yaml"]) == 0
    assert [name for name, _ in calls] == list(STAGES)  # ingest was not run twice


def test_a_bug_shows_its_traceback(calls, monkeypatch):
    break_stage(monkeypatch, "ingest", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["run", "talk.yaml"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: COMMAND"),
        (["walk"], "invalid choice: 'walk'"),
        (["run"], "the following arguments are required: CONFIG"),
        (["run", "talk.yaml", "--from", "nowhere"], "invalid choice: 'nowhere'"),
        (["run", "talk.yaml", "--seeds", "0"], "found '0', expected a whole number from 1 on"),
        (["run", "talk.yaml", "--dry"], "unrecognized arguments: --dry"),
        (["train", "talk.yaml", "--from", "train"], "unrecognized arguments: --from train"),
    ],
)
def test_wrong_arguments_are_refused(calls, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_configs_lists_names_with_their_first_comment(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "tiny.yaml").write_text("# The smallest.\n# More of it.\nname: tiny\n")
    (folder / "larger.yaml").write_text("# The larger one.\nname: larger\n")
    (folder / "notes.txt").write_text("# nothing")
    monkeypatch.setattr(config_module, "files", lambda package: tmp_path)

    assert main(["configs"]) == 0
    assert capsys.readouterr().out == "larger  The larger one.\ntiny    The smallest.\n"


def test_a_configuration_is_printed_as_one_that_can_be_saved_and_run(tmp_path, capsys):
    assert main(["configs", "emorynlp-minilm"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "own.yaml").write_text(printed)

    assert config_module.load_config(str(tmp_path / "own.yaml")) == config_module.load_config("emorynlp-minilm")
    assert "  learning_rate: 0.0005  # highest learning rate of the schedule\n" in printed
    assert main(["configs", "nowhere"]) == 2


def test_help_answers_without_importing_anything_heavy():
    code = "import sys\nfrom erckit.pipeline.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert all(f"    {name} " in done.stdout for name in (*STAGES, "run", "configs"))
    assert not set(done.stderr.split()) & {"pydantic", "yaml", "numpy", "torch", "transformers", "tqdm"}


def test_who_reads_the_beginning_alone_is_no_error():
    command = [sys.executable, "-m", "erckit.pipeline.cli", "configs", "sample"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()  # as `head` does, only sooner
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_a_fresh_run_imports_no_torch(calls):
    """What `erckit` itself imports for a command, apart from its stages, answers quickly."""
    code = "import sys, erckit.pipeline.run, erckit.pipeline.cli\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not set(done.stderr.split()) & {"torch", "transformers", "numpy", "sklearn", "datasets"}
