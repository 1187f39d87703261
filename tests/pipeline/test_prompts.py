"""The prompts stage: only what changed is made again, and other programs read the exports as they are."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from erckit.data.files import read_json_lines
from erckit.pipeline import exports
from erckit.pipeline.artefacts import load_trees, load_wording
from erckit.pipeline.run import Run, run_stages
from erckit.pipeline.stages import prompts
from erckit.prompts.tree import read_aloud, unroll
from huggingface_hub import DatasetCard
from pyarrow import parquet

pytestmark = pytest.mark.usefixtures("remembering_encoder")

SPLITS = ("train", "dev", "test")


@pytest.fixture
def desk(begin, tiny_corpus, tmp_path):
    """A run with prompts, of a corpus that the test may change."""
    return Desk(tiny_corpus, begin()[1], begin, tmp_path)


class Desk:
    def __init__(self, corpus: Path, run: Run, begin: Any, folder: Path) -> None:
        self.corpus, self.run, self.begin, self.folder, self.overrides = corpus, run, begin, folder, ()

    def make(self, *overrides: str) -> set[str]:
        """Bring the prompts up to date. Returns the splits that were made."""
        self.overrides = overrides
        before = self.times()
        run_stages(self.config, self.run, last="prompts")
        after = self.times()
        made = {split for split in SPLITS if any(before.get(file) != after[file] for file in after if split in file)}
        assert all(before.get(f) != after[f] for f in after if any(split in f for split in made))  # all of it, or none
        return made

    @property
    def config(self) -> Any:
        return self.begin(f"data.path={self.corpus}", *self.overrides)[0]

    def times(self) -> dict[str, int]:
        return {name: (self.run.path("prompts") / name).stat().st_mtime_ns for name in files_of(self.run)}

    def edit(self, split: str, old: str, new: str) -> None:
        """Change the first `old` of a split, in a corpus of the test's own with the same name."""
        if self.folder not in self.corpus.parents:
            self.corpus = shutil.copytree(self.corpus, self.folder / self.corpus.name)
        path = self.corpus / f"{split}.jsonl"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def fresh(self) -> dict[str, bytes]:
        """The files of the prompts stage, made from nothing."""
        folder = self.folder / "fresh"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.run.folder, folder, ignore=shutil.ignore_patterns("prompts"))
        run = Run(folder, seed=1)
        run_stages(self.config, run, last="prompts")
        return files_of(run)


def files_of(run: Run) -> dict[str, bytes]:
    """Every file of the prompts stage but its manifest, which holds times, and what is kept to go on from."""
    folder = run.path("prompts")
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in paths.items()
        if name != "manifest.json" and not name.startswith(("checkpoints/", "wording/"))
    }


def test_only_what_changed_is_made_again_and_equals_what_a_fresh_run_makes(desk, capsys):
    def check(made: set[str], *overrides: str) -> None:
        assert desk.make(*overrides) == made
        assert files_of(desk.run) == desk.fresh()

    shutil.rmtree(desk.run.path("profiles"))  # from here on, the same text has the same vector to the last bit
    desk.make()
    desk.edit("test", '"text": "', '"text": "Well. ')
    check({"test"})
    assert "  those of train, dev are up to date\n" in capsys.readouterr().out
    desk.edit("dev", '"speaker": "', '"speaker": "Old ')  # strangers: the registry of speakers changes
    check({"dev"})
    desk.edit("train", '"label": "neutral"', '"label": "mad"')  # and with it what is known of speakers
    check(set(SPLITS))
    check(set(), "model.attention=utterance")  # not the tokenizer
    check(set(SPLITS), "prompts.window=2")
    check(set(SPLITS), "prompts.window=2", "prompts.template=instruct")


def test_where_nothing_is_told_of_speakers_a_change_of_train_leaves_dev_and_test(desk):
    silent = ("prompts.biography_tokens=0", "prompts.facts=0")
    assert desk.make(*silent) == set(SPLITS)
    desk.edit("train", '"text": "', '"text": "Well. ')

    assert desk.make(*silent) == {"train"}
    assert files_of(desk.run) == desk.fresh()
    assert desk.make(*silent, "profiles.examples_per_emotion=1") == set()


@pytest.mark.parametrize("file", ["dev.jsonl", "export/dev.messages.parquet", "export/dev.prompt_completion.jsonl"])
def test_a_split_with_a_file_that_was_changed_or_removed_is_made_again(desk, file):
    made = files_of(desk.run)
    path = desk.run.path("prompts") / file
    path.write_bytes(path.read_bytes()[:-1])
    assert desk.make() == {"dev"}
    path.unlink()

    assert desk.make() == {"dev"}
    assert files_of(desk.run) == made


class Killed(BaseException):
    """Stands for SIGKILL, which no `except Exception` catches either."""


def test_a_killed_stage_goes_on_with_the_split_at_which_it_stopped(desk, monkeypatch):
    made = files_of(desk.run)
    shutil.rmtree(desk.run.path("prompts"))
    plant = prompts._plant_dialogue

    def die_in_dev(dialogue: Any, knowledge: Any, split: str, *others: Any) -> Any:
        if split == "dev":
            raise Killed
        return plant(dialogue, knowledge, split, *others)

    with monkeypatch.context() as patch:
        patch.setattr(prompts, "_plant_dialogue", die_in_dev)
        with pytest.raises(Killed):
            desk.make()
    desk.run.path("prompts", "export", ".dev.messages.jsonl.left").write_text("half", encoding="utf-8")
    desk.run.path("prompts", "dev.jsonl").write_text("half", encoding="utf-8")

    assert desk.make() == {"dev", "test"}
    assert files_of(desk.run) == made


def test_two_processes_make_what_one_makes(desk, monkeypatch):
    made = files_of(desk.run)
    desk.run.path("prompts", "dev.jsonl").unlink()
    monkeypatch.setattr(prompts, "TOGETHER", 1)  # four dialogues, so that both have some

    assert desk.make("processes=2") == {"dev"}
    assert files_of(desk.run) == made


def test_dialogues_are_read_no_faster_than_they_are_worded(desk, monkeypatch):
    shutil.rmtree(desk.run.path("prompts"))
    read, waiting = [], []
    stream, plant = prompts.stream_vectors, prompts._plant_dialogue

    def note_read(*arguments: Any) -> Any:
        for dialogue, vectors in stream(*arguments):
            read.append(dialogue.id)
            yield dialogue, vectors

    def note_worded(dialogue: Any, *others: Any) -> Any:
        waiting.append(len(read) - len(waiting))
        return plant(dialogue, *others)

    monkeypatch.setattr(prompts, "TOGETHER", 2)
    monkeypatch.setattr(prompts, "stream_vectors", note_read)
    monkeypatch.setattr(prompts, "_plant_dialogue", note_worded)
    desk.make()

    assert len(waiting) == len(read) > 4 and max(waiting) == 2


def expected_rows(run: Run, split: str) -> list[tuple[str, str]]:
    """The prompts of a split worded plainly, each with its label; recent emotions are told in train only."""
    wording = load_wording(run)
    dialogues = {record["id"]: record for _, record in read_json_lines(run.path("ingest", f"dialogues.{split}.jsonl"))}
    rows = []
    for tree in load_trees(run, split, wording):
        said = dialogues[tree.dialogue]["utterances"]
        gold = {turn: utterance["label"] for turn, utterance in enumerate(said)} if split == "train" else {}
        for branch in tree.branches:
            pieces = [piece for piece in unroll(tree, branch, gold, wording) if not piece.control]
            rows.append((read_aloud(pieces).lstrip("\n"), said[branch.turn]["label"]))
    return rows


def load(run: Run, form: str, tmp_path: Path) -> Any:
    from datasets import load_dataset

    return load_dataset(str(run.path("prompts", "export")), form, cache_dir=str(tmp_path / "cache"))


def test_datasets_loads_both_forms_by_name(desk, tmp_path):
    pairs, talks = (load(desk.run, form, tmp_path) for form in ("prompt_completion", "messages"))
    wording = load_wording(desk.run)

    assert list(pairs) == list(talks) == list(SPLITS)
    for split in SPLITS:
        rows = expected_rows(desk.run, split)
        assert len(rows) > 20
        assert pairs[split].to_list() == [
            {"prompt": prompt, "completion": wording.text("answer", label=label)} for prompt, label in rows
        ]
        assert talks[split].to_list() == [
            {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": label}]}
            for prompt, label in rows
        ]
        for form, loaded in (("prompt_completion", pairs), ("messages", talks)):
            lines = read_json_lines(desk.run.path("prompts", "export", f"{split}.{form}.jsonl"))
            assert [row for _, row in lines] == loaded[split].to_list()


@pytest.mark.parametrize("form", ["prompt_completion", "messages"])
def test_a_plain_trainer_of_trl_learns_from_the_export(desk, tiny_model, tmp_path, form):
    import torch
    from trl import SFTConfig, SFTTrainer

    train = load(desk.run, form, tmp_path)["train"]
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trained"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        max_length=None,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = SFTTrainer(str(tiny_model("qwen2")), arguments, train_dataset=train)
    if form == "prompt_completion":  # what it learns is the answer, and where the answer ends
        batch = next(iter(trainer.get_train_dataloader()))
        learned = [trainer.processing_class.decode(row[row != -100]) for row in batch["labels"]]
        assert {text.removesuffix("<|im_end|>") for text in learned} <= set(train["completion"])
        assert all(text.endswith("<|im_end|>") for text in learned)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()

    assert trainer.state.global_step == 2
    losses = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
    assert losses and 0 < losses[0] < 20
    assert any(not torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters())


def test_the_card_says_what_it_is_and_names_no_place_of_this_machine(desk, tmp_path):
    text = desk.run.path("prompts", "export", "README.md").read_text(encoding="utf-8")
    header, loaded = DatasetCard(text).data.to_dict(), load(desk.run, "messages", tmp_path)

    assert header["license"] == "unknown"
    assert [config["config_name"] for config in header["configs"]] == ["prompt_completion", "messages"]
    for split in SPLITS:
        assert f"| {split} | {len(loaded[split]):,} | " in text
    assert "told in train only, and are gold there" in text and "licence of its makers" in text
    assert not re.search(r"(^|[\s`'\"(])/\w", text, re.MULTILINE)


def test_a_corpus_with_quotes_in_its_name_has_a_card_that_loads(desk, tmp_path):
    desk.corpus = shutil.copytree(desk.corpus, tmp_path / '"odd": {name} # of')
    config = desk.begin()[0]
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(desk.corpus)})})
    run_stages(config, desk.run, last="prompts")

    card = DatasetCard(desk.run.path("prompts", "export", "README.md").read_text(encoding="utf-8"))
    assert card.data.to_dict()["pretty_name"] == '"odd": {name} # of, as prompts of erckit'
    assert set(load(desk.run, "messages", tmp_path)) == set(SPLITS)


def test_a_split_without_labels_has_trees_but_no_rows(desk, tmp_path):
    desk.edit("test", "label", "label")
    text = (desk.corpus / "test.jsonl").read_text(encoding="utf-8")
    (desk.corpus / "test.jsonl").write_text(re.sub(r'"label": "\w+"', '"label": null', text), encoding="utf-8")

    assert desk.make() == {"test"}
    assert len(list(load_trees(desk.run, "test", load_wording(desk.run)))) > 0
    assert desk.run.path("prompts", "export", "test.messages.jsonl").read_text(encoding="utf-8") == ""
    assert list(load(desk.run, "messages", tmp_path)) == ["train", "dev"]


def test_parquet_is_written_group_by_group(desk, tmp_path, monkeypatch):
    path = desk.run.path("prompts", "export", "train.messages.parquet")
    whole = parquet.read_table(path)
    shutil.rmtree(desk.run.path("prompts"))
    monkeypatch.setattr(exports, "ROWS", 7)
    desk.make()

    groups = parquet.ParquetFile(path).metadata
    assert groups.num_row_groups == -(-whole.num_rows // 7) > 3
    assert parquet.read_table(path).equals(whole)
