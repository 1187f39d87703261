"""Packed logits and gradients equal those of unrolled prompts, one by one with the model's own attention."""

import copy
import re

import numpy as np
import pytest
import torch
from erckit.data.errors import DataError
from erckit.pipeline import attention
from erckit.pipeline.attention import (
    PACKED,
    Layout,
    TrunkCache,
    attend_packed,
    packed_attention,
    packed_logits,
    use_packed_attention,
)
from erckit.prompts.packing import Part, lay_out, unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
WINDOW = 6
FAMILIES = {
    "qwen2": {},
    "qwen2 sliding": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {},
    "llama": {},
    "phi3": {},
    "gemma": {},
    "gemma3_text": {"sliding_window": WINDOW},
    "mistral": {"sliding_window": WINDOW},
    "bert": {"is_decoder": True, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0},
}


def build(family: str):
    """A tiny model of random weights, large enough that answers differ, in evaluation mode with its own attention."""
    config = AutoConfig.for_model(
        family.split()[0],
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        **({} if family == "bert" else {"num_key_value_heads": 2, "head_dim": 8}),
        max_position_embeddings=128,
        initializer_range=0.3,
        pad_token_id=0,
        **FAMILIES[family],
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module", params=FAMILIES)
def models(request):
    """The same model twice: as it is, and with the packed attention."""
    own = build(request.param)
    packed = copy.deepcopy(own)
    attend_packed(packed)
    return own, packed


def draw_part(generator, *, known: int = 0) -> Part:
    trunk = generator.integers(3, VOCABULARY, size=generator.integers(max(1, known), 31))
    afters = np.sort(generator.integers(max(1, known), len(trunk) + 1, size=generator.integers(1, 5)))
    branches = [(int(after), draw_ids(generator), [(5,), (7, 8)][: generator.integers(3)]) for after in afters]
    return lay_out(trunk, branches, known=known)


def draw_ids(generator) -> list[int]:
    return generator.integers(3, VOCABULARY, size=generator.integers(1, 7)).tolist()


def pack(model, parts, caches=()) -> torch.Tensor:
    """Packed logits at every decision of every part."""
    layout = Layout(parts, "cpu", caches)
    places = [
        start + place
        for part, start in zip(parts, layout.starts, strict=True)
        for decided in part.asked
        for place in decided.values()
    ]
    return packed_logits(model, layout, places)


def unroll(model, parts) -> torch.Tensor:
    """The last logits of every unrolled prompt, one forward pass each."""
    prompts = [unpack(part, branch, leaf) for part in parts for branch, d in enumerate(part.asked) for leaf in d]
    return torch.stack([model(torch.tensor([prompt]), use_cache=False).logits[0, -1] for prompt in prompts])


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), tile=st.sampled_from([1, 5, 128]))
def test_logits_equal_those_of_unrolled_prompts(models, seed, count, tile):
    own, packed = models
    generator = np.random.default_rng(seed)
    parts = [draw_part(generator) for _ in range(count)]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("erckit.pipeline.attention.TILE", tile)
        torch.testing.assert_close(pack(packed, parts), unroll(own, parts), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["bert", "llama", "qwen3"])
def test_both_ways_within_utterances_equals_the_model_with_a_mask_written_out(family):
    """The mask by definition: what stands in an earlier stretch is seen, and of one's own all, but of an answer."""
    own, generator = build(family), np.random.default_rng(8)
    packed = copy.deepcopy(own)
    attend_packed(packed)
    trunk, ends, leaf = generator.integers(3, VOCABULARY, size=30), [7, 12, 13, 30], (5, 6)
    branches = [(end, draw_ids(generator), [leaf]) for end in ends]
    expected = []
    with torch.no_grad():
        for end, branch, _ in branches:
            stretch = [sum(stop <= place for stop in ends) for place in range(end)] + [len(ends)] * len(branch)
            prompt = torch.tensor([[*trunk[:end], *branch, *leaf]])
            numbers = torch.tensor([*stretch, len(ends) + 1, len(ends) + 2])
            visible = numbers[None, :] <= numbers[:, None]
            mask = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[None, None]
            logits = own(prompt, attention_mask=mask, use_cache=False).logits[0]
            expected += [logits[-len(leaf) - 1], logits[-1]]
        whole = pack(packed, [lay_out(trunk, branches, blocks=np.array(ends))])
        torch.testing.assert_close(whole, torch.stack(expected), atol=1e-4, rtol=0)
        cache, grown = TrunkCache(), []
        for branch in branches:
            part = lay_out(trunk, [branch], known=cache.known, blocks=np.array(ends))
            grown.append(pack(packed, [part], [cache]))
            cache.known += part.trunk
        torch.testing.assert_close(torch.cat(grown), whole, atol=1e-4, rtol=0)


def test_a_gradient_step_equals_that_of_unrolled_prompts(models):
    generator = np.random.default_rng(3)
    parts = [draw_part(generator) for _ in range(3)]
    stepped = []
    for model, compute in zip(models, (unroll, pack), strict=True):
        model = copy.deepcopy(model).train()
        logits = compute(model, parts)
        targets = torch.arange(len(logits)) % VOCABULARY
        torch.nn.functional.cross_entropy(logits, targets).backward()
        torch.optim.SGD(model.parameters(), lr=1e-2).step()
        stepped.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.grad is not None]))
    assert len(stepped[0]) > 10_000
    torch.testing.assert_close(stepped[1], stepped[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tile", [3, 128])
def test_a_trunk_that_grows_in_a_cache_equals_one_computed_from_scratch(models, tile, monkeypatch):
    monkeypatch.setattr("erckit.pipeline.attention.TILE", tile)
    """Three conversations of unlike length in one row, six turns; the questions of a turn leave no trace."""
    _, packed = models
    generator = np.random.default_rng(4)
    trunks = [generator.integers(3, VOCABULARY, size=60) for _ in range(3)]
    ends = np.array([np.sort(generator.choice(np.arange(1, 60), size=6, replace=False)) for _ in trunks])
    caches = [TrunkCache() for _ in trunks]
    with torch.inference_mode():
        for turn in range(6):
            asked = [(int(end[turn]), draw_ids(generator), [(5,)]) for end in ends]
            rows = list(zip(trunks, asked, strict=True))
            parts = [lay_out(t, [b], known=cache.known) for (t, b), cache in zip(rows, caches, strict=True)]
            found = pack(packed, parts, caches)
            for cache, part in zip(caches, parts, strict=True):
                cache.known += part.trunk
            expected = pack(packed, [lay_out(trunk, [branch]) for trunk, branch in rows])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert [cache.known for cache in caches] == ends[:, -1].tolist()


def test_a_window_shorter_than_the_prompt_decides():
    """Otherwise the cases with a sliding window would show nothing."""
    part = lay_out(np.arange(3, 33), [(30, [40, 41], [])])
    logits = []
    for window in (WINDOW, 1000):
        model = build("mistral")
        for layer in model.model.layers:
            layer.self_attn.config.sliding_window = window
        attend_packed(model)
        with torch.no_grad():
            logits.append(pack(model, [part]))
    assert (logits[0] - logits[1]).abs().max() > 0.1


@pytest.mark.parametrize("window", [None, WINDOW])
def test_the_block_mask_of_cuda_is_the_dense_mask(window):
    """FlexAttention needs a GPU to be fast; what it may see does not."""
    generator = np.random.default_rng(6)
    parts = [draw_part(generator) for _ in range(4)]
    layout = Layout(parts, "cpu")
    tokens = torch.arange(len(layout.ids))
    dense = torch.block_diag(*(layout._dense_mask(part, window, torch.float32) == 0 for part in parts))
    for rows in (tokens, tokens[3::7]):
        mask = layout._block_mask(window, rows).mask_mod
        visible = mask(None, None, torch.arange(len(rows))[:, None], tokens[None, :])
        assert torch.equal(visible, dense.bool()[rows])


def test_flex_attention_gives_what_sdpa_gives(monkeypatch):
    """Not compiled, which takes minutes on a CPU: the same mathematics, slowly."""

    def plain(query, key, value, training, **options):
        return flex_attention(query, key, value, **options)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", plain)
    generator = np.random.default_rng(7)
    parts = [draw_part(generator) for _ in range(3)]
    layout = Layout(parts, "cpu")
    query, key, value = torch.randn(3, 1, 4, len(layout.ids), 16, generator=torch.Generator().manual_seed(0))
    module = torch.nn.Module().eval()
    everywhere = layout.attend(module, query, key, value, 0.25, None)
    found = layout._attend_flexibly(module, query, key, value, 0.25, None)
    torch.testing.assert_close(found, everywhere, atol=1e-5, rtol=0)
    layout.ask(list(range(1, len(layout.ids), 5)))
    for attend in (layout._attend_flexibly, layout.attend):
        found = attend(module, query[:, :, layout.asked], key, value, 0.25, None)
        torch.testing.assert_close(found, everywhere[:, layout.asked], atol=1e-5, rtol=0)


# Which models are taken.


def test_a_model_is_taken_when_packing_changes_nothing(models):
    model = copy.deepcopy(models[0])
    use_packed_attention(model)
    assert model.config._attn_implementation == PACKED and not model.training


def test_a_model_that_packing_would_change_is_refused(monkeypatch):
    model = build("llama")
    right = Layout._dense_mask

    def blind_to_the_trunk(layout, part, window, dtype):
        mask = right(layout, part, window, dtype)
        mask[part.trunk :, : part.trunk // 2] = float("-inf")
        return mask

    monkeypatch.setattr(attention.Layout, "_dense_mask", blind_to_the_trunk)
    with pytest.raises(
        DataError, match=r"LlamaForCausalLM\) cannot take packed prompts: logits differ by [\d.]+ stand"
    ):
        use_packed_attention(model)


def test_a_model_without_attention_of_the_registry_is_refused():
    config = AutoConfig.for_model("mamba", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(DataError, match=r"\(MambaForCausalLM\) cannot take packed prompts: .*Expected a causal transf"):
        use_packed_attention(model)


def test_attention_of_a_kind_that_is_not_computed_here_is_refused():
    zeros, layout = torch.zeros(1, 1, 1, 1), Layout([lay_out(np.array([3]), [(1, [4], [])])], "cpu")
    with pytest.raises(DataError, match=re.escape("the model's attention uses softcap, which packed prompts do not")):
        packed_attention(torch.nn.Module(), zeros, zeros, zeros, None, layout=layout, softcap=50.0)
