"""The loss: what labels weigh, and that only the weights decide, not how examples are cut into forward passes."""

import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from erckit.data.errors import DataError
from erckit.data.labels import EMORYNLP, LabelSet
from erckit.pipeline.attention import attend_packed
from erckit.pipeline.loss import class_weights, confusion_errors, weighted_mean
from erckit.pipeline.stages.train import build_trainer
from erckit.prompts.wording import Piece
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback

SCHEMES = ("none", "inverse", "sqrt_inverse", "effective_number")
example_counts = st.dictionaries(st.sampled_from(EMORYNLP.names), st.integers(1, 10_000), min_size=2)


@given(st.sampled_from(SCHEMES), example_counts, st.floats(0, 0.9999))
def test_the_average_training_example_weighs_one(scheme, counts, beta):
    weights = class_weights(scheme, counts, beta)
    examples = [weights[label] for label, count in counts.items() for _ in range(count)]
    assert list(weights) == list(counts)
    assert np.mean(examples) == pytest.approx(1)


def test_weights_of_a_hand_case():
    counts = {"mad": 1, "sad": 4}
    ratios = {
        scheme: (weights := class_weights(scheme, counts, beta=0.5))["mad"] / weights["sad"] for scheme in SCHEMES
    }
    # Effective numbers for beta = 1/2: 1 for one example, 1 + 1/2 + 1/4 + 1/8 for four.
    assert ratios == pytest.approx({"none": 1, "inverse": 4, "sqrt_inverse": 2, "effective_number": 1.875})
    assert class_weights("inverse", counts, beta=0.5) == pytest.approx({"mad": 2.5, "sad": 0.625})
    assert class_weights("effective_number", counts, beta=0.0) == pytest.approx({"mad": 1, "sad": 1})


def test_a_label_without_example_is_refused():
    message = "no training example of sad, scared: nothing can be learned of it. Add some, or drop it."
    with pytest.raises(DataError, match=re.escape(message)):
        class_weights("none", {"sad": 0, "mad": 3, "scared": 0}, beta=0.9)


@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=6).flatmap(
        lambda counts: st.tuples(
            st.just(counts),
            st.none()
            | st.lists(
                st.lists(st.integers(0, 9), min_size=len(counts), max_size=len(counts)),
                min_size=len(counts),
                max_size=len(counts),
            ),
        )
    )
)
def test_errors_follow_the_confusion_matrix_and_the_training_counts(case):
    counts, confusion = case
    rows = confusion_errors(confusion, counts)
    for gold, row in enumerate(rows):
        others = [label for label in range(len(counts)) if label != gold]
        spread = {label: counts[label] / sum(counts[other] for other in others) for label in others}
        seen = {label: confusion[gold][label] if confusion else 0 for label in others}
        assert row[gold] == 0
        for label in others:
            assert row[label] == pytest.approx((seen[label] + spread[label]) / (sum(seen.values()) + 1))


# The weighted loss of a real model.


def weigh(labels: LabelSet) -> dict[str, float]:
    return {label: 0.5 + place for place, label in enumerate(labels)}


@pytest.fixture(scope="module")
def compute_loss(score_prompts):
    def compute(parts, prompts: list[list[int]], gold: list[str], weights: Mapping[str, float]) -> torch.Tensor:
        losses = -score_prompts(parts, prompts, [[parts.tokens.answers[label]] for label in gold]).squeeze(1)
        told = torch.tensor([weights[label] for label in gold])
        return weighted_mean(losses, told, told.sum())

    return compute


def gradients_of(parts, loss: torch.Tensor) -> torch.Tensor:
    parts.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in parts.model.parameters() if p.grad is not None])


def test_for_labels_of_one_token_it_is_the_weighted_cross_entropy_of_their_logits(load_tiny, compute_loss):
    parts = load_tiny("qwen2", LabelSet(("m", "a", "s")), chat=True)
    prompts = [parts.tokens.ids([Piece("It rains and rains.")])] * 2 + [
        parts.tokens.ids([Piece("No boat, no sea.")])
    ] * 3
    gold, weights = ["a", "m", "s", "s", "a"], weigh(parts.labels)
    tokens = [ids[0] for ids in parts.tokens.answers.values()]
    assert all(len(ids) == 1 for ids in parts.tokens.answers.values()) and tokens != sorted(tokens)

    parts.model.set_attn_implementation("sdpa")
    logits = torch.stack([parts.model(torch.tensor([prompt])).logits[0, -1, tokens] for prompt in prompts])
    truth = torch.tensor([parts.labels.index(label) for label in gold])
    expected = torch.nn.functional.cross_entropy(logits, truth, weight=torch.tensor([*weights.values()]))
    expected_gradients = gradients_of(parts, expected)

    attend_packed(parts.model)
    loss = compute_loss(parts, prompts, gold, weights)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(gradients_of(parts, loss), expected_gradients, atol=1e-5, rtol=1e-5)


def test_a_label_weighs_the_same_however_many_tokens_its_answer_has(load_tiny, compute_loss):
    parts = load_tiny("llama")
    prompt = parts.tokens.ids([Piece("It rains and rains.")])
    gold, weights = ["powerful", "sad", "scared", "mad"], weigh(parts.labels)
    assert len({len(parts.tokens.answers[label]) for label in gold}) > 1

    alone = {label: compute_loss(parts, [prompt], [label], weights).item() for label in gold}
    expected = sum(weights[label] * alone[label] for label in gold) / sum(weights[label] for label in gold)
    assert compute_loss(parts, [prompt] * 4, gold, weights).item() == pytest.approx(expected, rel=1e-5)


# The same, through the trainer.


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.found = {
            name: parameter.grad.clone()
            for name, parameter in kwargs["model"].named_parameters()
            if parameter.requires_grad
        }


def test_how_a_step_is_put_together_changes_nothing_but_memory(eight_examples):
    """All utterances of a dialogue together or one at a time, in one forward pass or many: the gradient is the same."""
    gradients, losses = {}, {}
    for together, tokens, checkpointing in ((0, 100_000, "false"), (0, 1, "false"), (1, 1, "false"), (2, 200, "true")):
        config, run = eight_examples(
            "train.class_weights=inverse",
            "train.max_gradient_norm=1e9",
            "train.batch_size=8",
            f"train.together={together}",
            f"train.row_tokens={tokens}",
            f"train.gradient_checkpointing={checkpointing}",
        )
        trainer = build_trainer(config, run)
        assert sum(trainer.prompts.counts.values()) == 8 and len(set(trainer.weights.values())) > 1
        generator = torch.Generator().manual_seed(5)
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:  # at 0, where it starts, it hides the gradients of the other matrix
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        trainer.model.double()  # so that rounding hides nothing
        keep = KeepGradients()
        trainer.add_callback(keep)
        trainer.train()
        assert trainer.state.global_step == 1
        case = together, tokens
        gradients[case], losses[case] = keep.found, trainer.state.log_history[0]["loss"]

    first = gradients[0, 100_000]
    assert list(losses.values()) == pytest.approx([losses[0, 100_000]] * 4, rel=1e-6)
    longest = max(gradient.abs().max().item() for gradient in first.values())
    assert min(gradient.abs().max().item() for gradient in first.values()) > 1e-3 * longest
    for found in gradients.values():
        for name, gradient in first.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6 * longest, rtol=0)
