"""Training: what an epoch is made of, that it can be made again, and that what it keeps is what it measured."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from erckit.data.files import read_json_lines
from erckit.data.labels import EMORYNLP
from erckit.pipeline import training
from erckit.pipeline.artefacts import load_trees, load_wording
from erckit.pipeline.backbone import load_tokenizer
from erckit.pipeline.scoring import answer_trees
from erckit.pipeline.stages import train
from erckit.pipeline.training import LengthGroups, TrainingPrompts
from erckit.prompts.tokens import PieceTokenizer
from erckit.prompts.tree import gold_emotions, unroll
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from sklearn.metrics import f1_score
from transformers import AutoModelForCausalLM, TrainerCallback

# The order of examples.

lengths_and_batch = st.tuples(st.lists(st.integers(1, 99), min_size=1, max_size=300), st.integers(1, 9))


@given(lengths_and_batch, st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_an_epoch_holds_every_example_once_in_an_order_of_seed_and_epoch_alone(case, seed, epoch):
    lengths, batch_size = case
    groups = LengthGroups(lengths, batch_size, seed)
    groups.set_epoch(epoch)
    order = list(groups)
    assert sorted(order) == list(range(len(lengths))) and len(groups) == len(lengths)

    later = LengthGroups(lengths, batch_size, seed)
    for other in (epoch + 1, epoch):  # what was drawn before does not matter
        later.set_epoch(other)
        drawn = list(later)
    assert drawn == order


def test_orders_differ_by_epoch_and_seed():
    orders = set()
    for seed in (1, 2):
        for epoch in (0, 1):
            groups = LengthGroups(range(40), 4, seed)
            groups.set_epoch(epoch)
            orders.add(tuple(groups))
    assert len(orders) == 4


def test_neighbours_are_alike_in_length():
    """In a batch of eight from 400 at random, lengths spread by 0.78 of the whole range on average."""
    lengths = np.random.default_rng(0).permutation(400)
    order = list(LengthGroups(lengths, 8, seed=1))
    spreads = [np.ptp(lengths[order[start : start + 8]]) for start in range(0, 400, 8)]
    assert max(spreads) == 7


# The prompts of an epoch.


@pytest.fixture(scope="module")
def talks(load_tiny, talk, make_trees):
    parts = load_tiny("qwen2")
    generator = np.random.default_rng(4)
    trees = make_trees(parts, [talk(generator, f"d{place}", 10) for place in range(30)])
    return SimpleNamespace(parts=parts, trees=trees, gold=gold_emotions(trees))


@pytest.fixture
def told(talks, monkeypatch):
    """A function from noise and epoch to the (gold, told) emotions of every recent turn, in the order of examples."""

    def collect(noise, epoch=0, confusion=None, seed=3):
        pairs = []

        def spy(tree, branch, emotions, wording):
            pairs.append([(talks.gold[tree.dialogue][turn], emotions[turn]) for turn in branch.recent])
            return unroll(tree, branch, emotions, wording)

        monkeypatch.setattr(training, "unroll", spy)
        parts = talks.parts
        prompts = TrainingPrompts(talks.trees, parts.labels, parts.tokens, parts.wording, noise, seed)
        prompts.start_epoch(epoch, confusion)
        # In any order: the draw of an example depends on no other.
        for place in reversed(range(len(prompts.examples))):
            prompts.word(place)
        return [pair for example in reversed(pairs) for pair in example]

    return collect


def test_recent_emotions_are_gold_but_for_the_share_of_noise(told):
    assert all(gold == shown for gold, shown in told(noise=0.0))
    assert all(gold != shown for gold, shown in told(noise=1.0))

    pairs = told(noise=0.3)
    wrong = sum(gold != shown for gold, shown in pairs)
    deviation = (len(pairs) * 0.3 * 0.7) ** 0.5
    assert len(pairs) > 400 and abs(wrong - 0.3 * len(pairs)) < 4 * deviation


def test_the_noise_is_drawn_anew_each_epoch_and_again_the_same(told):
    assert told(0.5, epoch=1) == told(0.5, epoch=1)
    assert len({tuple(told(0.5, epoch=epoch, seed=seed)) for epoch in (0, 1) for seed in (3, 4)}) == 4


def test_errors_are_those_that_the_model_makes(told):
    after = {label: EMORYNLP.names[place - 1] for place, label in enumerate(EMORYNLP)}
    confusion = [[10_000 * (after[gold] == label) for label in EMORYNLP] for gold in EMORYNLP]
    pairs = told(noise=1.0, confusion=confusion)
    assert np.mean([shown == after[gold] for gold, shown in pairs]) > 0.99


def test_examples_are_the_labelled_branches_with_their_answers(talks):
    parts = talks.parts
    prompts = TrainingPrompts(talks.trees, parts.labels, parts.tokens, parts.wording, noise=0.0, seed=1)
    gold = [branch.label for tree in talks.trees for branch in tree.branches]
    assert prompts.counts == {label: gold.count(label) for label in EMORYNLP}
    for place, (tree, branch) in enumerate(prompts.examples[:20]):
        prompt = unroll(tree, branch, talks.gold[tree.dialogue], parts.wording)
        expected = [*parts.tokens.ids(prompt), *parts.tokens.answers[branch.label]]
        assert prompts.word(place) == (expected, parts.tokens.answers[branch.label], branch.label)


# Whole trainings.

ONCE = ("train.epochs=2", "train.lora_dropout=0.1", "train.class_weights=inverse")
# Steps between two looks at dev that no number of steps between two log entries divides.
OFTEN = (*ONCE, "train.batch_size=1", "train.evaluations_per_epoch=5", "train.patience=99", "train.learning_rate=3e-2")


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

    With `in_writing`, the kill comes while the last of these checkpoints is written.
    """

    def make(*overrides, kill_after=None, in_writing=False):
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
    answers = list(answer_trees(model, tokens, wording, trees, batch_size=config.predict.batch_size))
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
