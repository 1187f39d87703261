"""What the tests of the pipeline share: loaded tiny models, and prompts of random dialogues."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from erckit.data.dialogue import Dialogue, Utterance
from erckit.data.files import read_json_lines, write_json_lines
from erckit.data.labels import EMORYNLP, LabelSet
from erckit.pipeline.adapter import save_adapter
from erckit.pipeline.backbone import load_model, load_tokenizer, lora
from erckit.pipeline.config import Config, Data, Model
from erckit.pipeline.run import Run
from erckit.pipeline.scoring import answer_log_likelihoods, find_leaves
from erckit.prompts.packing import lay_out
from erckit.prompts.tasks import Knowledge, Task, build_trees
from erckit.prompts.tokens import PieceTokenizer
from erckit.prompts.tree import PromptTree
from erckit.prompts.wording import read_wording
from peft import get_peft_model

WORDS = "well that was not what anybody said about the boat and the rain".split()


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
def score_prompts() -> Callable[..., torch.Tensor]:
    """A function from parts, prompts as token ids, and the answers wanted of each (default: all) to log-likelihoods."""

    def score(parts: Any, prompts: list[list[int]], answers: list[list[tuple[int, ...]]] | None = None) -> torch.Tensor:
        answers = answers or [list(parts.tokens.answers.values())] * len(prompts)
        choices = parts.tokens.choices
        # The trunk is the first half: where a prompt is cut does not matter.
        cut = [
            lay_out(
                np.array(ids[: len(ids) // 2]), [(len(ids) // 2, ids[len(ids) // 2 :], find_leaves(wanted, choices))]
            )
            for ids, wanted in zip(prompts, answers, strict=True)
        ]
        return answer_log_likelihoods(parts.model, cut, answers, choices).reshape(len(prompts), -1)

    return score


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


@pytest.fixture(scope="session")
def make_adapter(load_tiny, tmp_path_factory):
    """A function from a kind of model to a configuration for it and the folder of an adapter with random weights."""

    def make(kind):
        config = Config(name="talk", data=Data(path="sample"), model=load_tiny(kind).config)
        model = get_peft_model(load_model(config.model), lora(config.model, rank=4, alpha=8, dropout=0.5))
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        folder = tmp_path_factory.mktemp("adapters") / kind
        save_adapter(model, folder, config, EMORYNLP, read_wording("brief"))
        return config, folder, model.eval()

    return make
