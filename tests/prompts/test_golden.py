"""Prompts as a person reads them, pinned as text. Read every difference before you accept it.

ERCKIT_GOLDEN=write makes the files anew.
"""

import os
from pathlib import Path

import pytest
from erckit.pipeline.artefacts import load_trees, load_wording
from erckit.pipeline.config import load_config
from erckit.pipeline.run import Run
from erckit.pipeline.stages import ingest, profiles, prompts
from erckit.prompts.tree import gold_emotions, read_aloud, unroll
from transformers import AutoConfig

pytestmark = pytest.mark.usefixtures("remembering_encoder")

FOLDER = Path(__file__).parents[1] / "golden"
# In training, with its dialogue left out of what is told; in test, after a stranger; and said by two, one a stranger.
SHOWN = (("train", "one-star-11"), ("test", "a-straight-line-05"), ("test", "not-socks-a-visit-before-march-02"))
SETTINGS = {
    "brief": ["prompts.template=brief", "prompts.chat=false"],
    "instruct": ["prompts.template=instruct", "prompts.chat=false"],
    "instruct-chat": ["prompts.template=instruct", "prompts.chat=true"],
}
# Longer than any prompt shown: what stands in them hangs on no tokenizer.
ROOM = ["prompts.max_tokens=4000", "prompts.biography_tokens=400", "prompts.fact_tokens=400", "prompts.facts=2"]
ROOM += ["prompts.window=4", "prompts.history=window", "prompts.recent_emotions=predicted", "prompts.recent_count=3"]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory) -> Path:
    """A run folder with the profiles of the sample corpus."""
    folder = tmp_path_factory.mktemp("golden")
    config, run = load_config("sample"), Run(folder, seed=1)
    ingest.run(config, run)
    profiles.run(config, run)
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_prompts_read_as_pinned(profiled, tiny_tokenizer, tmp_path, name):
    tiny_tokenizer("qwen2").save_pretrained(tmp_path)
    AutoConfig.for_model("qwen2").save_pretrained(tmp_path)
    run = Run(profiled, seed=1)
    prompts.run(load_config("sample", [f"model.name={tmp_path}", *SETTINGS[name], *ROOM]), run)

    found = "\n".join(f"--- {split}: {id}\n{show(run, split, id)}\n" for split, id in SHOWN)
    file = FOLDER / f"{name}.txt"
    if os.environ.get("ERCKIT_GOLDEN") == "write":
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8"), (
        f"{file.name} is another now; if that is meant, run the test with ERCKIT_GOLDEN=write and read the difference"
    )


def show(run: Run, split: str, id: str) -> str:
    """The prompt for an utterance, told the gold emotions of its speaker; its answer stands in marks."""
    wording = load_wording(run)
    gold = gold_emotions(load_trees(run, split, wording))
    ((tree, branch),) = (
        (tree, branch) for tree in load_trees(run, split, wording) for branch in tree.branches if branch.utterance == id
    )
    return read_aloud(unroll(tree, branch, gold[tree.dialogue], wording)) + f"«{branch.label}»"
