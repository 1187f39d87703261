"""Training that no longer computes numbers stops, and keeps the batch to look at."""

import json
import math
import re

import pytest
import torch
from erckit.data.errors import DataError
from erckit.pipeline import training
from erckit.pipeline.manifest import list_outputs
from erckit.pipeline.stages import train
from erckit.prompts.tree import unroll


@pytest.fixture
def begun(eight_examples, monkeypatch):
    """A configuration of two steps an epoch, its run, and the rows that training asks for, one after the other."""
    config, run = eight_examples("train.epochs=2", "train.batch_size=4", "train.together=1", "train.row_tokens=400")
    rows, collate = [], training.ErcTrainer.collate

    def spy(trainer, places):
        batch = collate(trainer, places)
        rows.append(batch["row"])
        return batch

    monkeypatch.setattr(training.ErcTrainer, "collate", spy)
    return config, run, rows


def spoil_loss(monkeypatch, call, value):
    """Have the first loss of the forward pass numbered `call` become `value`."""
    calls, whole = [], training.answer_log_likelihoods

    def spoiled(*arguments):
        calls.append(None)
        found = whole(*arguments)
        return torch.cat([found[:1] * 0 - value, found[1:]]) if len(calls) == call else found

    monkeypatch.setattr(training, "answer_log_likelihoods", spoiled)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_training_and_leaves_its_batch(begun, monkeypatch, value):
    config, run, rows = begun
    path = run.path("train", "diverged.json")
    with monkeypatch.context() as patch:
        spoil_loss(patch, 4, value)
        with pytest.raises(DataError) as raised:
            train.run(config, run)
    found = json.loads(path.read_text(encoding="utf-8"))
    row = rows[3]
    dialogue, utterance = row.asked[0]
    assert str(raised.value) == (
        f"{path}: at optimiser step {found['step']} the loss is not finite; the batch is in this file. Look first at "
        f"the utterance {utterance!r} of dialogue {dialogue!r}. Lower `train.learning_rate`, or have "
        "`model.dtype` float32."
    )
    assert found["not_finite"] == "loss" and found["step"] >= 1
    examples = found["examples"][-len(row.asked) :]
    assert [(one["dialogue"], one["utterance"], one["label"]) for one in examples] == [
        (*asked, label) for asked, label in zip(row.asked, row.labels, strict=True)
    ]
    assert [one["loss"] for one in found["examples"] if isinstance(one["loss"], str)] == [str(value)]
    assert examples[0]["loss"] == str(value)
    assert not run.path("train", "adapter").exists()

    train.run(config, run)  # without the fault
    assert run.path("train", "adapter").is_dir() and path not in list_outputs(run.path("train"))


def test_the_batch_holds_the_prompts_that_were_asked(begun, monkeypatch):
    config, run, _ = begun
    config = config.model_copy(update={"train": config.train.model_copy(update={"recent_noise": 0.0})})
    spoil_loss(monkeypatch, 1, math.nan)
    prompts = train.build_trainer(config, run).prompts
    expected = {}
    for tree in prompts._trees:
        gold = prompts._gold[tree.tree.dialogue]
        for branch in tree.tree.branches:
            prompt = prompts.tokens.ids(unroll(tree.tree, branch, gold, prompts.wording))
            expected[tree.tree.dialogue, branch.utterance] = [*prompt, *prompts.tokens.answers[branch.label]]
    with pytest.raises(DataError):
        train.run(config, run)
    examples = json.loads(run.path("train", "diverged.json").read_text(encoding="utf-8"))["examples"]
    assert examples
    for one in examples:
        assert one["tokens"] == expected[one["dialogue"], one["utterance"]]


def test_a_gradient_that_is_no_number_stops_training_before_the_weights_are_spoilt(begun, monkeypatch):
    config, run, rows = begun
    calls, mean = [], training.weighted_mean

    def spoiled(*arguments):
        calls.append(None)
        loss = mean(*arguments)
        if len(calls) == 3:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return loss

    monkeypatch.setattr(training, "weighted_mean", spoiled)
    trainer = train.build_trainer(config, run)
    with pytest.raises(DataError, match=re.escape("the gradient is not finite; the batch is in this file.")):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    found = json.loads(run.path("train", "diverged.json").read_text(encoding="utf-8"))
    assert found["not_finite"] == "gradient" and all(math.isfinite(one["loss"]) for one in found["examples"])
    assert {(one["dialogue"], one["utterance"]) for one in found["examples"]} >= set(rows[2].asked)
