"""The run folder: what is fresh stays, all else is made again, and a kill at any moment leaves nothing half-made."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from erckit.pipeline import manifest as manifest_module
from erckit.pipeline import run as run_module
from erckit.pipeline.config import Config, load_config
from erckit.pipeline.manifest import MANIFEST, STARTED
from erckit.pipeline.run import Fresh, Run, RunError, Stale, forecast, run_stage, run_stages, split_plan, state
from erckit.pipeline.stages import STAGES
from hypothesis import given, settings
from hypothesis import strategies as st

SPLITS = ("train", "dev", "test")
SEEDED = ("train", "predict", "evaluate")

# The design's table, written a second time: sections, and for each file that the stage writes, the files it is
# made of. A shared stage's file that is made of a seeded one is made of all seeds' files.
DIALOGUES = [f"ingest/dialogues.{split}.jsonl" for split in SPLITS]
SPEAKERS, LABELS = "ingest/speakers.json", "ingest/labels.json"
STORE = ["profiles/facts.jsonl", "profiles/index.faiss", "profiles/store.json"]
ABOUT_TRAIN = [DIALOGUES[0], SPEAKERS, LABELS]
ASKED = ["prompts/dev.jsonl", "prompts/test.jsonl", STORE[2], "train/adapter/weights.bin", "train/adapter/config.json"]
METRICS = "evaluate/metrics.json"
SECTIONS = {
    "ingest": ["data"],
    "profiles": ["profiles"],
    "prompts": ["prompts", "model", "profiles"],
    "train": ["train", "model"],
    "predict": ["predict", "model", "prompts"],
    "evaluate": ["evaluate", "profiles"],
    "report": ["report"],
}
FILES = {
    "ingest": {path: [f"corpus/{path.split('.')[1]}.txt"] for path in DIALOGUES}
    | {SPEAKERS: ["corpus/people.txt"], LABELS: ["corpus/people.txt"]},
    "profiles": dict.fromkeys(STORE, ABOUT_TRAIN),
    "prompts": {f"prompts/{split}.jsonl": [f"ingest/dialogues.{split}.jsonl", *STORE] for split in SPLITS},
    "train": {path: ["prompts/train.jsonl", "prompts/dev.jsonl", LABELS] for path in (*ASKED[3:], "train/log.jsonl")},
    "predict": {f"predict/{split}.jsonl": ASKED for split in SPLITS[1:]},
    "evaluate": {METRICS: ["predict/dev.jsonl", "predict/test.jsonl", *DIALOGUES, SPEAKERS, LABELS]},
    "report": {"report/index.html": [METRICS, "train/log.jsonl", "prompts/test.jsonl", STORE[0], LABELS]},
}
# What a stage looks at as a whole, where that is more than its files are made of.
LOOKS_AT = {
    "ingest": ["corpus/train.txt", "corpus/dev.txt", "corpus/test.txt", "corpus/people.txt"],
    "prompts": [*DIALOGUES, SPEAKERS, LABELS, *STORE],
    "report": [*DIALOGUES, SPEAKERS, LABELS, *STORE, *FILES["prompts"], *FILES["train"], *FILES["predict"], METRICS],
}


class World:
    """A corpus, a run folder and fake stages, whose files are made of exactly what `FILES` says."""

    def __init__(self, folder: Path):
        self.corpus, self.runs = folder / "corpus", folder / "runs"
        self.wording = "w1"
        self.calls: list[tuple[str, int | None]] = []
        self.before = lambda name, run: None  # called at the start of every stage
        self.config = make_config(str(self.corpus))
        for name in ("train", "dev", "test", "people"):
            self.write_corpus(name, "1")

    def write_corpus(self, name: str, text: str) -> None:
        self.corpus.mkdir(exist_ok=True)
        (self.corpus / f"{name}.txt").write_text(text)

    def modules(self) -> dict[str, ModuleType]:
        made = {}
        for name in FILES:
            module = ModuleType(STAGES[name].module)
            vars(module)["run"] = lambda config, run, name=name: self.work(name, config, run)
            made[module.__name__] = module
        vars(made[STAGES["ingest"].module])["corpus_files"] = lambda config: sorted(self.corpus.glob("*.txt"))
        vars(made[STAGES["prompts"].module])["fingerprint"] = lambda config: self.wording
        return made

    def run(self, *seeds: int) -> Run:
        return Run(self.runs / "talk", (seeds or (1,))[0], seeds)

    def go(self, *seeds: int, first: str = "ingest", last: str = "report") -> list[tuple[str, int | None]]:
        """Run the stages. Returns those that really ran."""
        self.calls = []
        run_stages(self.config, self.run(*seeds), first, last)
        return self.calls

    def work(self, name: str, config: Config, run: Run) -> str:
        self.calls.append((name, run.seed if name in SEEDED else None))
        self.before(name, run)
        for path, content in self.outputs(name, config, run).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return f"wrote {len(FILES[name])} files."

    def outputs(self, name: str, config: Config, run: Run) -> dict[Path, bytes]:
        made = {}
        for file, sources in FILES[name].items():
            parts = [file, self.settings(name, config), str(run.seed) if name in SEEDED else "", self.words(name)]
            parts += [path.read_bytes().hex() for source in sources for path in self.find(source, name, run)]
            made[self.place(file, run)] = hashlib.md5("|".join(parts).encode()).hexdigest().encode()
        return made

    def settings(self, name: str, config: Config) -> str:
        return json.dumps([getattr(config, section).model_dump() for section in SECTIONS[name]])

    def words(self, name: str) -> str:
        return self.wording if name == "prompts" else ""

    def find(self, source: str, reader: str, run: Run) -> list[Path]:
        stage, _, rest = source.partition("/")
        if stage == "corpus":
            return [self.corpus / rest]
        seeds = run.seeds if stage in SEEDED and reader not in SEEDED else [run.seed]
        return [self.place(source, run.with_seed(seed)) for seed in seeds]

    def place(self, file: str, run: Run) -> Path:
        stage, _, rest = file.partition("/")
        middle = [f"seed-{run.seed}"] if stage in SEEDED else []
        return run.folder.joinpath(*middle, stage, rest)

    def looks_at(self, name: str, run: Run) -> tuple:
        """All that a stage depends on, as plain values: the brute-force twin of a key."""
        sources = LOOKS_AT.get(name) or sorted({s for sources in FILES[name].values() for s in sources})
        paths = [path for source in sources for path in self.find(source, name, run)]
        seen = {path: path.read_bytes() if path.is_file() else None for path in paths}
        return self.settings(name, self.config), self.words(name), seen


def make_config(path: str, *overrides: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "talk.yaml"
        file.write_text(f"name: talk\ndata: {{path: {path}}}\n")
        return load_config(str(file), overrides)


@contextmanager
def new_world():
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        world = World(Path(folder))
        for name, module in world.modules().items():
            patch.setitem(sys.modules, name, module)
        yield world


@pytest.fixture
def world():
    with new_world() as made:
        yield made


EDITS = (
    [("set", key) for key in ("data.aliases", "profiles.examples_per_emotion", "model.name", "prompts.window")]
    + [("set", key) for key in ("train.epochs", "predict.batch_size", "evaluate.resamples", "report.prompts")]
    + [("corpus", name) for name in ("train", "dev", "test", "people")]
    + [(what, file) for what in ("tamper", "delete") for files in FILES.values() for file in files]
    + [("forget", stage) for stage in FILES]
    + [("wording", ""), ("nothing", "")]
)


def edit(world: World, kind: str, what: str, number: int) -> None:
    """Make one edit, a different one for each number from 0 to 2."""
    if kind == "set":
        section, key = what.split(".")
        old = getattr(world.config, section)
        value = f"v{number}" if isinstance(getattr(old, key), str) else 10 + number
        new = {section: old.model_copy(update={key: value})}
        world.config = world.config.model_copy(update=new)
    elif kind == "corpus":
        world.write_corpus(what, str(number))
    elif kind == "wording":
        world.wording = f"w{number}"
    elif kind in ("tamper", "delete", "forget"):
        path = world.place(f"{what}/{MANIFEST}" if kind == "forget" else what, world.run(1 + number))
        if path.is_file():
            path.write_bytes(b"edited") if kind == "tamper" else path.unlink()


@settings(max_examples=30, deadline=None)
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 2)), max_size=3),
            st.sampled_from([(1,), (1, 2), (2,)]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_stages_that_run_are_those_that_brute_force_finds(rounds):
    with new_world() as world:
        built = {}  # what each stage last looked at, and what it made of it
        for edits, seeds in rounds:
            for (kind, what), number in edits:
                edit(world, kind, what, number)
            run = world.run(*seeds)
            foretold = dict(forecast(world.config, run, "ingest", "report"))
            for name, seed in instances(seeds):
                one = run.with_seed(seed or seeds[0])
                expected = has_to_run(world, name, one, built.get((name, seed)))
                built[name, seed] = (world.looks_at(name, one), world.outputs(name, world.config, one))
                assert run_stage(name, world.config, one) == expected, (name, seed)
                assert (expected, foretold[label(name, seed, seeds)]) not in [(True, Fresh())]
                assert expected or "after" in getattr(foretold[label(name, seed, seeds)], "reason", "after")
            assert world.go(*seeds) == []  # nothing is left to do


def instances(seeds):
    return [(name, seed) for name in FILES for seed in (seeds if name in SEEDED else [None])]


def label(name, seed, seeds):
    return f"{name} (seed {seed})" if seed and len(seeds) > 1 else name


def has_to_run(world, name, run, before) -> bool:
    """Brute force: compare everything, byte for byte, with what was there when the stage last ran."""
    if before is None or not world.place(f"{name}/{MANIFEST}", run).is_file():
        return True
    looked_at, made = before
    intact = all(path.is_file() and path.read_bytes() == content for path, content in made.items())
    return not intact or looked_at != world.looks_at(name, run)


class Killed(BaseException):
    """Stands for SIGKILL, which no `except Exception` catches either."""


@contextmanager
def killed_after(lines: int):
    """Raise `Killed` in place of a line of run.py, manifest.py, or of the stage, after so many of their lines."""
    watched = {run_module.__file__, manifest_module.__file__}
    left = itertools.count(lines, -1)

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in watched and frame.f_code is not World.work.__code__:
            return None
        if event == "line" and next(left) == 0:
            raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_kill_between_any_two_lines_leaves_nothing_that_passes_for_finished(world):
    world.go(last="profiles")
    run, first = world.run(), world.config
    folder = run.path("profiles")
    second = make_config(str(world.corpus), "profiles.examples_per_emotion=9")
    right = world.outputs("profiles", second, run)
    for lines in itertools.count():
        run_stage("profiles", first, run)
        (folder / "left-over.txt").write_text("of the first configuration")
        try:
            with killed_after(lines):
                run_stage("profiles", second, run)
        except Killed:
            ended = False
        else:
            ended = True
        if (folder / MANIFEST).is_file():
            recorded = json.loads((folder / MANIFEST).read_text())["outputs"]
            assert {path: sha256(folder / path) for path in recorded} == {p: o["sha256"] for p, o in recorded.items()}
            assert len(recorded) == len(right)
        run_stage("profiles", second, run)
        assert isinstance(state("profiles", second, run), Fresh)
        # A kill right after the manifest was written leaves the other record, which then means nothing.
        assert {p: p.read_bytes() for p in folder.iterdir() if p.name not in (MANIFEST, STARTED)} == right
        if ended:
            break
    assert lines > 50  # the loop really went through the lines


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_killed_stage_resumes_under_the_same_key_and_starts_empty_under_another(world):
    found = []

    def look_then_fail(name, run):
        if name == "profiles":
            found.append(sorted(path.name for path in run.path(name).iterdir() if path.name != STARTED))
            run.path(name, "checkpoints").mkdir(exist_ok=True)
            run.path(name, "half.txt").write_text("half")
            if len(found) < 4:
                raise Killed

    world.before = look_then_fail
    other = make_config(str(world.corpus), "profiles.encoder=other")
    for config in (world.config, world.config, other, other):
        world.config = config
        try:
            world.go(last="profiles")
        except Killed:
            assert state("profiles", config, world.run()) == Stale("interrupted")

    assert found == [[], ["checkpoints", "half.txt"], [], ["checkpoints", "half.txt"]]
    assert isinstance(state("profiles", other, world.run()), Fresh)


CHILD = """
    import importlib.util, pathlib, sys, time
    spec = importlib.util.spec_from_file_location("test_run", sys.argv[1])
    tests = importlib.util.module_from_spec(spec)
    sys.modules["test_run"] = tests
    spec.loader.exec_module(tests)
    world = tests.World(pathlib.Path(sys.argv[2]))
    sys.modules.update(world.modules())

    def stop_half_way(name, run):
        if name == "profiles":
            run.path(name, "facts.jsonl").write_text("half")
            sys.stdout.write("half\\n")
            sys.stdout.flush()
            time.sleep(600)

    world.before = stop_half_way
    world.go()
"""


def test_while_a_process_works_a_second_is_refused_and_once_it_is_killed_its_stage_runs_again(world):
    command = [sys.executable, "-c", textwrap.dedent(CHILD), __file__, str(world.corpus.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        while child.stdout.readline() not in ("half\n", ""):
            continue
        with pytest.raises(RunError, match="talk: another erckit process works in this run folder. Wait until it ends"):
            world.go()
        assert not world.run().path("profiles", MANIFEST).exists()
        os.kill(child.pid, signal.SIGKILL)

    assert state("profiles", world.config, world.run()) == Stale("interrupted")
    assert world.go(last="prompts") == [("profiles", None), ("prompts", None)]  # ingest was finished


def test_seeded_stages_run_for_each_seed_and_the_report_once_over_all(world):
    seen = []
    world.before = lambda name, run: seen.append((name, run.seeds)) if name == "report" else None

    calls = world.go(5, 6)

    assert calls == [*[(n, None) for n in FILES if n not in (*SEEDED, "report")], *SEEDS_5_6, ("report", None)]
    assert seen == [("report", (5, 6))]
    assert world.go(5) == [("report", None)]  # the same seeds are there, the report now covers one
    inputs = json.loads(world.run(5).path("report", MANIFEST).read_text())["inputs"]
    assert "seed-5/evaluate/metrics.json" in inputs and not any(path.startswith("seed-6") for path in inputs)


SEEDS_5_6 = [(name, seed) for name in SEEDED for seed in (5, 6)]


def test_a_stage_that_asks_the_configuration_for_the_seed_gets_its_own(world, monkeypatch):
    seeds = []
    module = SimpleNamespace(run=lambda config, run: seeds.append((config.seed, run.seed)) or "nothing")
    world.go(1, 2, last="prompts")
    monkeypatch.setitem(sys.modules, STAGES["train"].module, module)

    run_stages(world.config, world.run(1), "train", "train", seeds=(1, 2))

    assert seeds == [(1, 1), (2, 2)]


def test_paths(tmp_path):
    run = Run(tmp_path, 3)

    assert run.path("ingest", "a", "b") == tmp_path / "ingest" / "a" / "b"
    assert run.path("train") == tmp_path / "seed-3" / "train"
    assert run.with_seed(4).path("predict", "dev.jsonl") == tmp_path / "seed-4" / "predict" / "dev.jsonl"
    assert run.path("report") == run.with_seed(4).path("report") == tmp_path / "report"
    assert run.seeds == (3,) and dataclasses.replace(run, seeds=(3, 4)).with_seed(4).seeds == (3, 4)


@pytest.mark.parametrize(
    "kind, what, stage, reason",
    [
        ("set", "prompts.window", "prompts", "prompts.window changed: 6 -> 12"),
        ("set", "model.name", "train", "model.name changed: embedded -> v2"),
        ("corpus", "dev", "ingest", "corpus/dev.txt changed"),
        ("tamper", LABELS, "profiles", "ingest/labels.json changed"),
        ("tamper", LABELS, "ingest", "output labels.json was changed"),
        ("delete", "train/adapter/weights.bin", "train", "output adapter/weights.bin is missing"),
        ("delete", "train/adapter/weights.bin", "predict", "seed-3/train/adapter/weights.bin is missing"),
        ("tamper", f"train/{MANIFEST}", "train", "its manifest.json is broken"),
        ("forget", "evaluate", "evaluate", "never run"),
        ("wording", "", "prompts", "its wording or method changed"),
    ],
)
def test_a_stale_stage_says_why(world, kind, what, stage, reason):
    world.go(3)
    edit(world, kind, what, 2)

    assert state(stage, world.config, world.run(3)) == Stale(reason)


def test_several_reasons_are_counted(world):
    world.go(last="prompts")
    edit(world, "set", "prompts.window", 2)
    edit(world, "tamper", LABELS, 2)
    edit(world, "wording", "", 2)

    assert state("prompts", world.config, world.run()) == Stale("prompts.window changed: 6 -> 12 and 2 more")


def test_a_new_version_of_erckit_makes_everything_stale(world, monkeypatch):
    world.go()
    monkeypatch.setattr(run_module, "__version__", "9.9")

    for name in FILES:
        assert state(name, world.config, world.run()) == Stale(f"erckit changed: {run_version()} -> 9.9")


def run_version() -> str:
    from erckit import __version__

    return __version__


def test_the_forecast_names_what_comes_first_and_touches_nothing(world):
    never = Stale("never run")
    assert list(forecast(world.config, world.run(), "ingest", "prompts")) == [
        ("ingest", never),
        ("profiles", Stale("after ingest")),
        ("prompts", Stale("after ingest")),
    ]
    assert not world.runs.exists()

    world.go(1, 2)
    edit(world, "set", "train.epochs", 2)
    before = {path: path.read_bytes() for path in world.runs.rglob("*") if path.is_file()}
    foretold = dict(forecast(world.config, world.run(1, 2), "ingest", "report"))

    changed = Stale("train.epochs changed: 3 -> 12")
    assert foretold["ingest"] == foretold["profiles"] == foretold["prompts"] == Fresh()
    assert foretold["train (seed 1)"] == foretold["train (seed 2)"] == changed
    assert foretold["predict (seed 2)"] == foretold["report"] == Stale("after train")
    assert foretold["evaluate (seed 1)"] == Stale("after predict")
    assert before == {path: path.read_bytes() for path in world.runs.rglob("*") if path.is_file()}


def test_stages_before_the_first_have_to_be_fresh(world):
    world.go()
    edit(world, "set", "prompts.window", 0)

    with pytest.raises(
        RunError, match=r"prompts is not up to date \(prompts.window changed: 6 -> 10\), and predict builds"
    ):
        world.go(first="predict")
    assert world.calls == []
    with pytest.raises(RunError, match="--from train --to ingest: train comes after ingest"):
        world.go(first="train", last="ingest")


def test_a_missing_input_is_named(world):
    with pytest.raises(RunError, match="profiles reads ingest/dialogues.train.jsonl, which is missing."):
        run_stage("profiles", world.config, world.run())
    assert world.calls == []


def test_an_adapter_from_elsewhere_takes_the_place_of_training(world, tmp_path):
    world.config = make_config(str(world.corpus), f"predict.adapter={tmp_path}")
    with pytest.raises(FileNotFoundError, match="found no adapter there. Set predict.adapter to its folder"):
        world.go()
    assert world.calls == []  # known before anything ran
    (tmp_path / "weights.bin").write_text("1")
    for file in ("train/adapter/weights.bin", "train/adapter/config.json", "train/log.jsonl"):
        path = world.place(file, world.run())  # the fake stages read them all the same
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("elsewhere")

    assert [name for name, _ in world.go()] == [name for name in FILES if name != "train"]
    assert world.go() == []
    (tmp_path / "weights.bin").write_text("2")
    assert state("predict", world.config, world.run()) == Stale("adapter/weights.bin changed")
    assert split_plan(world.config, "train", "train") == (["ingest", "profiles", "prompts"], ["train"])


def test_a_corpus_that_moves_changes_nothing_but_its_path(world, tmp_path):
    world.go()
    world.corpus = world.corpus.rename(tmp_path / "elsewhere")

    assert world.go() == []


def test_a_manifest_says_what_was_made_of_what_and_how(world):
    def add_unfinished_files(name, run):
        for part in (
            "checkpoints/step-1/weights.bin",
            ".draft.txt",
            "adapter/.cache/x",
            "adapter/checkpoints/kept.txt",
        ):
            path = run.path("train", part)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")

    world.go(2, last="prompts")
    world.before = add_unfinished_files
    world.go(2, last="train")
    run = world.run(2)
    folder = run.path("train")
    manifest = json.loads((folder / MANIFEST).read_text())

    assert manifest.keys() == {
        "stage", "key", "erckit", "config", "inputs", "outputs", "seed", "fingerprint", "versions", "started",
        "seconds", "peak_memory_mib", "summary",
    }  # fmt: skip
    assert (manifest["stage"], manifest["seed"], manifest["summary"]) == ("train", 2, "wrote 3 files.")
    outputs = ("adapter/checkpoints/kept.txt", "adapter/config.json", "adapter/weights.bin", "log.jsonl")
    assert manifest["outputs"] == {
        path: {"sha256": sha256(folder / path), "bytes": len((folder / path).read_bytes())} for path in outputs
    }
    inputs = FILES["train"]["train/log.jsonl"]
    assert manifest["inputs"] == {path: sha256(run.folder / path) for path in inputs}
    assert manifest["config"] == {s: getattr(world.config, s).model_dump(mode="json") for s in ("train", "model")}
    assert manifest["versions"].keys() >= {"python", "torch", "transformers", "trl", "peft"}
    assert load_config(str(run.folder / "config.yaml")) == world.config
    assert not (folder / STARTED).exists()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can only be reset on Linux")
def test_the_peak_of_memory_is_that_of_the_stage(world):
    world.before = lambda name, run: len(bytearray(os.urandom(1) * (300 << 20))) if name == "profiles" else None
    world.go(last="prompts")

    peaks = {
        name: json.loads(world.run().path(name, MANIFEST).read_text())["peak_memory_mib"]
        for name in ("ingest", "profiles", "prompts")
    }
    assert peaks["profiles"] - peaks["ingest"] > 250
    assert peaks["profiles"] - peaks["prompts"] > 250


def test_one_line_a_stage(world, capsys):
    world.go(1, 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(instances((1, 2)))
    assert re.fullmatch(r"ingest: wrote 5 files in \d\.\d s, peak \d+\.\d GiB", lines[0])
    assert lines[4].startswith("train (seed 2): wrote 3 files in ")

    world.go(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [f"{name}: up to date" for name in list(FILES)[:-1]]


def test_the_table_is_the_design(world):
    assert list(STAGES) == list(FILES)
    for name, stage in STAGES.items():
        assert list(stage.sections) == SECTIONS[name]
        assert stage.seeded == (name in SEEDED)
        assert {pattern.split("/")[0] for pattern in stage.inputs} < set(FILES)
