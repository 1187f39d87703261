"""What the tests of the pipeline share: prompts of small dialogues, and a run that is made up to its prompts."""

import shutil
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from erckit.data.dialogue import Dialogue, Utterance
from erckit.data.files import read_json_lines, write_json_lines
from erckit.data.labels import EMORYNLP, LabelSet
from erckit.pipeline.backbone import load_model, load_tokenizer
from erckit.pipeline.config import Config, Model, load_config
from erckit.pipeline.run import Run, run_stages
from erckit.prompts.tasks import Knowledge, Task, build_trees
from erckit.prompts.tokens import PieceTokenizer
from erckit.prompts.tree import PromptTree
from erckit.prompts.wording import read_wording

WORDS = "well that was not what anybody said about the boat and the rain".split()


@pytest.fixture(scope="session")
def prepared(tiny_config, tmp_path_factory) -> Run:
    """A run of the tiny configuration that is made up to its prompts; tests work on copies of it."""
    run = Run(tmp_path_factory.mktemp("runs") / "talk", seed=1)
    run_stages(load_config(str(tiny_config)), run, last="prompts")
    return run


@pytest.fixture(scope="session")
def begin(prepared, tiny_config, tmp_path_factory) -> Callable[..., tuple[Config, Run]]:
    """A function from overrides of the tiny configuration to it and to a fresh copy of the prepared run."""

    def make(*overrides: str) -> tuple[Config, Run]:
        config = load_config(str(tiny_config), overrides)
        run = Run(tmp_path_factory.mktemp("copies") / "talk", seed=config.seed)
        shutil.copytree(prepared.folder, run.folder)
        return config, run

    return make


@pytest.fixture(scope="session")
def eight_examples(begin) -> Callable[..., tuple[Config, Run]]:
    """Like `begin`, of a run that has eight training examples, one label twice."""

    def make(*overrides: str) -> tuple[Config, Run]:
        config, run = begin(*overrides)
        path = run.path("prompts", "train.jsonl")
        records = [record for _, record in read_json_lines(path)]
        labels = [record["branches"][0]["label"] for record in records]
        firsts = [labels.index(label) for label in EMORYNLP]
        rest = [place for place in range(len(records)) if place not in firsts]
        write_json_lines(path, [records[place] for place in sorted(firsts + rest[: 8 - len(firsts)])])
        return config, run

    return make


@pytest.fixture(scope="session")
def load_tiny(tiny_model) -> Callable[..., Any]:
    """A function from a kind of tiny model, or "embedded", and labels to the model with tokens and wording."""

    def load(kind: str, labels: LabelSet = EMORYNLP, chat: bool = False) -> Any:
        config = Model(name="embedded" if kind == "embedded" else str(tiny_model(kind)), device="cpu", dtype="float32")
        wording = read_wording("brief")
        tokens = PieceTokenizer(load_tokenizer(config), labels, wording, chat=chat)
        model: Any = load_model(config)
        return SimpleNamespace(model=model.eval(), tokens=tokens, wording=wording, labels=labels, config=config)

    return load


@pytest.fixture(scope="session")
def make_trees() -> Callable[..., list[PromptTree]]:
    """A function from dialogues to their prompt trees, without biographies and facts."""

    def make(parts: Any, dialogues: list[Dialogue], history: str = "window", window: int = 3) -> list[PromptTree]:
        task = Task(
            wording=parts.wording,
            tokens=parts.tokens,
            labels=parts.labels,
            history=history,
            window=window,
            max_tokens=400,
            biography_tokens=0,
            fact_tokens=0,
            recent_count=3,
        )
        knowledge = Knowledge(general=lambda speaker: (), nearest=lambda turn: ())
        return [
            tree
            for dialogue in dialogues
            for tree in build_trees(
                dialogue, knowledge, task, asked=range(len(dialogue.utterances)), losses=Counter[str]()
            )
        ]

    return make


@pytest.fixture(scope="session")
def talk() -> Callable[..., Dialogue]:
    """A function from a generator, an id and a length to a dialogue of two speakers, its words and labels random."""

    def make(generator: Any, id: str, turns: int, labels: LabelSet = EMORYNLP) -> Dialogue:
        utterances = [
            Utterance(
                id=f"{id}-{turn}",
                speakers=(str(generator.choice(["Ada", "Ben"])),),
                text=" ".join(generator.choice(WORDS, size=generator.integers(1, 12))),
                label=labels.names[generator.integers(len(labels))],
            )
            for turn in range(turns)
        ]
        return Dialogue(id, tuple(utterances))

    return make
