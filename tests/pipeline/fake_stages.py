"""Fake stages in a table like the real one, and the same written a second time for brute force."""

import hashlib
import json
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from erckit.pipeline import run as run_module
from erckit.pipeline.config import Config, load_config
from erckit.pipeline.manifest import MANIFEST
from erckit.pipeline.run import Run, run_stages
from erckit.pipeline.stages import Stage

SPLITS = ("train", "dev", "test")
SEEDED = ("train", "predict", "evaluate")

# A table like the real one, which these tests do not follow as it grows.
TABLE = {
    "ingest": Stage("fake.ingest", ("data",), ()),
    "profiles": Stage(
        "fake.profiles", ("profiles",), ("ingest/dialogues.train.jsonl", "ingest/speakers.json", "ingest/labels.json")
    ),
    "prompts": Stage("fake.prompts", ("prompts", "model", "profiles"), ("ingest/", "profiles/")),
    "train": Stage(
        "fake.train", ("train", "model"), ("prompts/train.jsonl", "prompts/dev.jsonl", "ingest/labels.json"), True
    ),
    "predict": Stage(
        "fake.predict",
        ("predict", "model", "prompts"),
        ("prompts/dev.jsonl", "prompts/test.jsonl", "profiles/store.json", "train/adapter/"),
        True,
    ),
    "evaluate": Stage("fake.evaluate", ("evaluate", "profiles"), ("predict/", "ingest/"), True),
    "report": Stage(
        "fake.report", ("report",), ("ingest/", "profiles/", "prompts/", "train/", "predict/", "evaluate/")
    ),
}

# The same in plain words, for brute force: sections, and for each file that a stage writes, the files it is made
# of. A shared stage's file that is made of a seeded one is made of all seeds' files.
DIALOGUES = [f"ingest/dialogues.{split}.jsonl" for split in SPLITS]
SPEAKERS, LABELS = "ingest/speakers.json", "ingest/labels.json"
STORE = ["profiles/facts.jsonl", "profiles/index.faiss", "profiles/store.json"]
ABOUT_TRAIN = [DIALOGUES[0], SPEAKERS, LABELS]
ADAPTER = ["train/adapter/weights.bin", "train/adapter/config.json"]
ASKED = ["prompts/dev.jsonl", "prompts/test.jsonl", STORE[2], *ADAPTER]
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
            module = ModuleType(TABLE[name].module)
            vars(module)["run"] = lambda config, run, name=name: self.work(name, config, run)
            made[module.__name__] = module
        vars(made[TABLE["ingest"].module])["corpus_files"] = lambda config: sorted(self.corpus.glob("*.txt"))
        vars(made[TABLE["prompts"].module])["fingerprint"] = lambda config: self.wording
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
        patch.setattr(run_module, "STAGES", TABLE)
        for name, module in world.modules().items():
            patch.setitem(sys.modules, name, module)
        yield world


EDITS = (
    [("set", key) for key in ("data.aliases", "profiles.examples_per_emotion", "model.name", "prompts.window")]
    + [("set", key) for key in ("train.epochs", "predict.conversations", "evaluate.resamples", "report.prompts")]
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


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
