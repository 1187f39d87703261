"""Whole trainings: that they can be made again, resumed, and that what is kept is what was measured."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from erckit.data.files import read_json_lines
from erckit.data.labels import EMORYNLP
from erckit.pipeline.artefacts import load_trees, load_wording
from erckit.pipeline.attention import attend_packed
from erckit.pipeline.backbone import load_tokenizer
from erckit.pipeline.epochs import TrainingPrompts
from erckit.pipeline.scoring import answer_trees
from erckit.pipeline.stages import train
from erckit.prompts.tokens import PieceTokenizer
from peft import PeftModel
from sklearn.metrics import f1_score
from transformers import AutoModelForCausalLM, TrainerCallback

# Whole trainings.

ONCE = ("train.epochs=2", "train.lora_dropout=0.1", "train.class_weights=inverse")
# Steps between two looks at dev that no number of steps between two log entries divides.
OFTEN = (*ONCE, "train.batch_size=1", "train.evaluations_per_epoch=5", "train.patience=99", "train.learning_rate=2e-2")


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    """Stops the training right after a checkpoint, as a kill would."""

    def __init__(self, after: int) -> None:
        self.left = after

    def on_save(self, args, state, control, **kwargs):
        self.left -= 1
        if not self.left:
            raise Killed


@pytest.fixture(scope="module")
def fit(begin):
    """A function from overrides, and a number of checkpoints to be killed after, to what training leaves.

    With `in_writing`, the kill comes while the last of these checkpoints is written; with `moved`, the run folder is
    elsewhere afterwards.
    """

    def make(*overrides, kill_after=None, in_writing=False, moved=False):
        config, run = begin(*overrides)
        if kill_after:
            build = train.build_trainer
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):

                def build_doomed(config, run):
                    trainer = build(config, run)
                    trainer.add_callback(Kill(kill_after))
                    return trainer

                patch.setattr(train, "build_trainer", build_doomed)
                train.run(config, run)
        if in_writing:
            checkpoints = run.path("train", "checkpoints").glob("*/trainer_state.json")
            max(checkpoints, key=lambda path: path.stat().st_mtime_ns).unlink()
        if moved:
            run = replace(run, folder=run.folder.rename(run.folder.with_name("elsewhere")))
        train.run(config, run)
        log = [entry for _, entry in read_json_lines(run.path("train", "log.jsonl"))]
        weights = run.path("train", "adapter", "adapter_model.safetensors").read_bytes()
        return SimpleNamespace(config=config, run=run, log=log, weights=weights)

    return make


@pytest.fixture(scope="module", params=[ONCE, OFTEN], ids=["a look an epoch", "five looks an epoch"])
def undisturbed(request, fit):
    return SimpleNamespace(overrides=request.param, **vars(fit(*request.param)))


def test_a_resumed_training_ends_as_an_undisturbed_one(undisturbed, fit):
    for kill_after, in_writing in ((1, False), (1, True)) if undisturbed.overrides == ONCE else ((1, False), (7, True)):
        resumed = fit(*undisturbed.overrides, kill_after=kill_after, in_writing=in_writing)
        assert resumed.log == undisturbed.log
        assert resumed.weights == undisturbed.weights


def test_a_run_that_moves_between_kill_and_resumption_still_ends_with_its_best_checkpoint(fit):
    """The best is none of the last, after which the kill comes."""
    settings = (*OFTEN, "train.evaluations_per_epoch=3")
    undisturbed, moved = fit(*settings), fit(*settings, kill_after=6, moved=True)
    looks = [entry["eval_w_f1"] for entry in undisturbed.log if "eval_w_f1" in entry]
    assert max(looks) > looks[-1]
    assert moved.log == undisturbed.log
    assert moved.weights == undisturbed.weights


def test_equal_trainings_are_equal_and_another_seed_is_another_training(undisturbed, fit):
    again = fit(*undisturbed.overrides)
    assert again.log == undisturbed.log and again.weights == undisturbed.weights
    if undisturbed.overrides == ONCE:
        assert fit(*ONCE, "seed=2").weights != undisturbed.weights


def test_the_adapter_that_is_kept_is_the_best_on_dev_as_plain_peft_loads_it(undisturbed):
    config, run = undisturbed.config, undisturbed.run
    model = AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(run.path("train", "adapter"))).eval()
    wording = load_wording(run)
    tokens = PieceTokenizer(load_tokenizer(config.model), EMORYNLP, wording, chat=False)
    trees = list(load_trees(run, "dev", wording))
    attend_packed(model)
    answers = list(answer_trees(model, tokens, wording, trees, both_ways=False, conversations=3, row_tokens=1000))
    measured = 100 * f1_score([a.branch.label for a in answers], [a.label for a in answers], average="weighted")

    looks = [entry["eval_w_f1"] for entry in undisturbed.log if "eval_w_f1" in entry]
    assert measured == pytest.approx(max(looks))
    assert len(looks) == (2 if undisturbed.overrides == ONCE else 2 * 5 + 1)  # and one at the very end
    assert undisturbed.overrides == ONCE or max(looks) > looks[-1]  # the last one would not have been the best


def test_the_log_holds_the_course_of_training_and_nothing_of_the_machine(undisturbed):
    kinds = Counter(tuple(sorted(entry)) for entry in undisturbed.log)
    assert kinds.keys() == {
        ("epoch", "grad_norm", "learning_rate", "loss", "step"),
        ("epoch", "eval_confusion", "eval_w_f1", "step"),
    }
    assert all(sum(map(sum, entry.get("eval_confusion", [[24]]))) == 24 for entry in undisturbed.log)


def test_training_stops_when_dev_no_longer_gets_better_resumed_or_not(fit):
    """With no learning to speak of, the first look at dev stays the best."""
    settings = ("train.epochs=6", "train.patience=2", "train.learning_rate=1e-12", "train.batch_size=36")
    for kill_after in (None, 2):
        log = fit(*settings, kill_after=kill_after).log
        assert [entry["epoch"] for entry in log if "eval_w_f1" in entry] == [1, 2, 3]


def test_each_epoch_errs_as_the_model_did_at_the_last_look_at_dev(eight_examples, monkeypatch):
    started, real = [], TrainingPrompts.start_epoch

    def spy(prompts, epoch, confusion):
        started.append((epoch, confusion))
        real(prompts, epoch, confusion)

    monkeypatch.setattr(TrainingPrompts, "start_epoch", spy)
    trainer = train.build_trainer(*eight_examples("train.epochs=3", "train.batch_size=4"))
    trainer.train()
    looks = [entry["eval_confusion"] for entry in trainer.state.log_history if "eval_confusion" in entry]
    assert started[1:] == [(0, None), (1, looks[0]), (2, looks[1])]  # after the one that makes them ready


@pytest.mark.parametrize("model", ["qwen2", "embedded"])
def test_only_the_adapter_is_trained(eight_examples, tiny_model, model):
    name = "embedded" if model == "embedded" else tiny_model(model)
    config, run = eight_examples(f"model.name={name}", "train.epochs=2")
    trainer = train.build_trainer(config, run)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all("lora_" in name or "modules_to_save" in name for name in trained)

    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    # The other matrix starts to change with the second step, which need not be the one that is kept.
    assert {name for name in trained if "lora_A" not in name} <= changed <= trained
