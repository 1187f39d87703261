"""Nothing of the future, of the answer, or of another split stands in a prompt: the stages on altered corpora."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from itertools import cycle
from pathlib import Path

import pytest
from erckit.data.corpus import read_corpus
from erckit.data.dialogue import SPLITS, Corpus, Dialogue, Utterance
from erckit.data.erckit_jsonl import write_dialogues
from erckit.data.errors import DataError
from erckit.data.files import write_json
from erckit.pipeline.artefacts import load_trees, load_wording
from erckit.pipeline.config import Config, load_config
from erckit.pipeline.run import Run
from erckit.pipeline.stages import ingest, predict, profiles, prompts
from erckit.prompts.tree import Branch, PromptTree, read_aloud, unroll
from erckit.retrieval.encoder import SentenceEncoder
from erckit.retrieval.profiles import Fact, read_facts, write_facts
from erckit.retrieval.store_files import write_store

pytestmark = pytest.mark.usefixtures("remembering_encoder")

WINDOW = ("prompts.template=brief", "prompts.history=window", "prompts.max_tokens=512")
SEGMENTS = ("prompts.template=instruct", "prompts.history=full", "prompts.max_tokens=400")


@pytest.fixture(scope="module")
def sample() -> Corpus:
    return read_corpus(Path(str(files("erckit.data") / "sample")))


def make_prompts(corpus: Corpus, folder: Path, settings: tuple[str, ...]) -> tuple[Config, Run]:
    """Take a corpus through ingest, profiles and prompts, as the command does."""
    write_json(folder / "corpus" / "labels.json", list(corpus.labels))
    for split in SPLITS:
        write_dialogues(folder / "corpus" / f"{split}.jsonl", corpus.dialogues[split])
    config = load_config("sample", [f"data.path={folder / 'corpus'}", *settings])
    run = Run(folder / "run", seed=1)
    for stage in (ingest, profiles, prompts):
        stage.run(config, run)
    return config, run


@pytest.fixture(scope="module")
def before(sample, tmp_path_factory) -> dict[tuple[str, ...], Run]:
    """The run of the corpus as it is, for both settings."""
    return {
        settings: make_prompts(sample, tmp_path_factory.mktemp("before"), settings)[1]
        for settings in (WINDOW, SEGMENTS)
    }


def branches(run: Run, split: str) -> Iterator[tuple[PromptTree, Branch]]:
    yield from ((tree, branch) for tree in load_trees(run, split, load_wording(run)) for branch in tree.branches)


def shown(run: Run, split: str) -> dict[tuple[str, int], tuple[str, tuple[int, ...]]]:
    """The prompt of every turn, given the same earlier answers, and the recent turns that it tells of."""
    wording, made = load_wording(run), {}
    for tree, branch in branches(run, split):
        answers = {turn: ["mad", "joyful", "sad"][turn % 3] for turn in range(branch.turn)}
        made[tree.dialogue, branch.turn] = (read_aloud(unroll(tree, branch, answers, wording)), branch.recent)
    return made


def change_after(dialogue: Dialogue, turn: int, pool: list[Utterance], draw: random.Random) -> Dialogue:
    """Change text, speaker and label of every utterance after a turn, and how many there are."""
    count = draw.randint(1, len(dialogue.utterances) - turn + 3)
    later = (
        replace(other, id=f"{dialogue.id}-later-{place}", speakers=draw.choice([other.speakers, ("A stranger",)]))
        for place, other in enumerate(draw.sample(pool, count))
    )
    return replace(dialogue, utterances=(*dialogue.utterances[: turn + 1], *later))


def check_kept(before, run, until: dict[str, int]):
    """Check that prompts up to a turn of each test dialogue, and all of train, are as before. Returns those of test."""
    expected, found = shown(before, "test"), shown(run, "test")
    kept = [(dialogue, turn) for dialogue, turn in expected if turn <= until[dialogue]]
    assert len(kept) > 20
    for place in kept:
        assert found[place] == expected[place]
    assert shown(run, "train") == shown(before, "train")
    return expected, found


@pytest.mark.parametrize(("settings", "seed"), [(WINDOW, 1), (SEGMENTS, 2), (SEGMENTS, 3)])
def test_a_prompt_holds_nothing_of_what_comes_later_nor_of_other_dialogues(sample, before, tmp_path, settings, seed):
    draw = random.Random(seed)
    pool = [u for dialogue in sample.dialogues["train"] for u in dialogue.utterances]
    # Half of the dialogues are kept up to some turn, the others change as a whole, and so does dev.
    until = {
        d.id: draw.randrange(len(d.utterances)) if place % 2 == seed % 2 else -1
        for place, d in enumerate(sample.dialogues["test"])
    }
    changed = {
        "train": sample.dialogues["train"],
        "dev": tuple(change_after(d, -1, pool, draw) for d in sample.dialogues["dev"]),
        "test": tuple(change_after(d, until[d.id], pool, draw) for d in sample.dialogues["test"]),
    }
    _, run = make_prompts(replace(sample, dialogues=changed), tmp_path, settings)

    expected, found = check_kept(before[settings], run, until)
    assert sum(found.get(place) == expected[place] for place in expected) < len(expected) - 30  # it did change


def shout(dialogue: Dialogue, turn: int, crowd: Iterator[str]) -> Dialogue:
    """Have every utterance after a turn said by the next of the crowd."""
    later = (replace(u, speakers=(next(crowd),)) for u in dialogue.utterances[turn + 1 :])
    return replace(dialogue, utterances=(*dialogue.utterances[: turn + 1], *later))


@pytest.mark.parametrize("settings", [WINDOW, SEGMENTS])
def test_a_prompt_spells_no_name_as_later_turns_or_other_dialogues_do(sample, before, tmp_path, settings):
    draw = random.Random(4)
    everybody = {name for dialogues in sample.dialogues.values() for d in dialogues for name in named(d)}
    known = {name for dialogue in sample.dialogues["train"] for name in named(dialogue)}
    crowd = cycle(name.upper() for name in sorted(everybody))
    until = {
        d.id: next((t for t, u in enumerate(d.utterances) if not known.issuperset(u.speakers)), draw.choice([-1, 3]))
        for d in sample.dialogues["test"]
    }
    respelt = {
        "train": sample.dialogues["train"],
        "dev": tuple(shout(d, -1, crowd) for d in sample.dialogues["dev"]),
        "test": tuple(shout(d, until[d.id], crowd) for d in sample.dialogues["test"]),
    }
    _, run = make_prompts(replace(sample, dialogues=respelt), tmp_path, settings)

    _, found = check_kept(before[settings], run, until)
    assert any("A TOURIST" in text for text, _ in found.values())  # a stranger is spelt as the dialogue has it


def named(dialogue: Dialogue) -> list[str]:
    return [name for utterance in dialogue.utterances for name in utterance.speakers]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_training_prompt_does_not_depend_on_the_labels_of_its_dialogue(sample, before, tmp_path, seed):
    draw = random.Random(seed)
    train = sample.dialogues["train"]
    chosen = draw.choice([d for d in train if len(d.utterances) > 8])
    labels = [u.label for u in chosen.utterances]
    labels = draw.sample(labels, len(labels)) if seed > 1 else ["sad"] * len(labels)
    permuted = tuple(replace(u, label=label) for u, label in zip(chosen.utterances, labels, strict=True))
    others = tuple(replace(d, utterances=permuted) if d is chosen else d for d in train)
    _, run = make_prompts(replace(sample, dialogues={**sample.dialogues, "train": others}), tmp_path, WINDOW)

    expected, found = trees_without_labels(before[WINDOW]), trees_without_labels(run)
    assert permuted != chosen.utterances
    assert found[chosen.id] == expected[chosen.id]
    assert found != expected  # the facts told in other dialogues do draw on these labels


def trees_without_labels(run: Run) -> dict[str, list[PromptTree]]:
    trees: dict[str, list[PromptTree]] = {}
    for tree in load_trees(run, "train", load_wording(run)):
        unlabelled = tuple(replace(branch, label=None) for branch in tree.branches)
        trees.setdefault(tree.dialogue, []).append(replace(tree, branches=unlabelled))
    return trees


@pytest.mark.parametrize("settings", [WINDOW, SEGMENTS])
def test_no_training_prompt_retrieves_an_utterance_of_its_own_dialogue(sample, before, settings):
    said_in: dict[str, set[str]] = {}
    for dialogue in sample.dialogues["train"]:
        for utterance in dialogue.utterances:
            for speaker in utterance.speakers:
                said_in.setdefault(f"{speaker} said: {utterance.text}", set()).add(dialogue.id)
    told = 0
    for tree, branch in branches(before[settings], "train"):
        for example in re.findall(r"Once \w+, (.+? said: [^\n]+)", "\n".join(piece.text for piece in branch.facts)):
            told += 1
            assert said_in[example] - {tree.dialogue}, f"{branch.utterance} is told {example!r}"
    assert told > 500


def test_strangers_are_introduced_as_such(before):
    prompts_by_turn = shown(before[WINDOW], "test")
    speakers = {(tree.dialogue, branch.turn): branch.speaker for tree, branch in branches(before[WINDOW], "test")}
    strangers = [place for place, speaker in speakers.items() if speaker in ("A tourist", "Jean Tarrant")]

    assert strangers
    for place in strangers:
        text, _ = prompts_by_turn[place]
        assert text.count(f"[{speakers[place]} is new]") == 1
        assert f"[{speakers[place]} is new] {speakers[place]}: " in text
        assert f"{speakers[place]} said: " not in text


def a_fact_from(split: str, fact: Fact) -> Fact:
    return replace(fact, id=f"{fact.id}:{split}", split=split, dialogues=("hatch",))


def refusal(split: str, id: str) -> str:
    return f"the profile store holds facts (1) from the split '{split}', which is being worked on; the first is '{id}'"


@pytest.mark.parametrize("split", ["dev", "test"])
def test_predict_refuses_a_store_that_knows_the_split(sample, before, tmp_path, split):
    run = Run(tmp_path, seed=1)
    facts = read_facts(before[WINDOW].path("profiles", "facts.jsonl"))
    leaked = a_fact_from(split, facts[0])
    write_facts(run.path("profiles", "facts.jsonl"), [*facts, leaked])

    with pytest.raises(DataError, match=f"^{re.escape(refusal(split, leaked.id))}"):
        predict.run(load_config("sample"), run)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_prompts_refuse_a_store_that_knows_the_split(sample, tmp_path, split):
    few = {name: dialogues[:4] for name, dialogues in sample.dialogues.items()}
    config, run = make_prompts(replace(sample, dialogues=few), tmp_path, WINDOW)
    encoder = SentenceEncoder()
    facts = read_facts(run.path("profiles", "facts.jsonl"))
    leaked = a_fact_from(split, facts[0])
    vectors = encoder.encode([fact.search_text for fact in (*facts, leaked)])
    about = (encoder.name, encoder.fingerprint, encoder.dimension)
    write_store(run.path("profiles"), *about, [([*facts, leaked], vectors)])

    with pytest.raises(DataError, match=f"^{re.escape(refusal(split, leaked.id))}"):
        prompts.run(config, run)
