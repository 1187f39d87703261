"""The temporary memory against PEFT and torch.optim, and what it must never do."""

import copy
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from erckit.data.errors import DataError
from erckit.pipeline.backbone import lora
from erckit.pipeline.config import Memory
from erckit.pipeline.memory import conversations
from erckit.pipeline.memory.conversations import answer_with_memory
from erckit.pipeline.memory.writing import Writer
from erckit.pipeline.scoring import answer_trees
from erckit.prompts.packing import TreeTokens
from erckit.prompts.tree import unroll
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

KINDS = ["qwen2", "llama", "phi3", "embedded"]
RATES = {"adamw": 0.02, "sgd": 0.5}  # large, so that what is written decides
ONE_KIND = pytest.mark.parametrize("tiny", ["qwen2"], indirect=True)


def hash_weights(model) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module", params=KINDS)
def tiny(request, load_tiny):
    """A tiny model under a task adapter that does something, in evaluation mode."""
    parts = load_tiny(request.param)
    # Adam turns rounding into steps where gradients are near 0, and six layers make more of that than two.
    parts.rates = {name: rate / 2 if request.param == "embedded" else rate for name, rate in RATES.items()}
    torch.manual_seed(5)
    parts.model = get_peft_model(parts.model, lora(parts.config, rank=4, alpha=8, dropout=0.1))
    with torch.no_grad():
        for name, parameter in parts.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    parts.model.eval()
    return parts


@pytest.fixture(scope="module")
def groups(tiny, make_trees, talk):
    """The window trees of five conversations of unlike length, each turn a tree."""
    generator = np.random.default_rng(11)
    talks = [talk(generator, f"d{place}", turns) for place, turns in enumerate((4, 1, 5, 3, 2))]
    return [make_trees(tiny, [dialogue], window=2) for dialogue in talks]


def remember(tiny, groups, *, row_tokens=4096, both_ways=False, gold=None, **settings):
    memory = Memory(
        **{"optimizer": "adamw", "rate": tiny.rates["adamw"], "rank": 4, "layers": 1, "slots": 3, **settings}
    )
    found = answer_with_memory(
        tiny.model, tiny.tokens, tiny.wording, groups, memory, both_ways=both_ways, row_tokens=row_tokens, gold=gold
    )
    return list(found)


def probabilities(remembered) -> np.ndarray:
    return np.array([one.answer.probabilities for one in remembered])


def answer_by_peft(
    tiny, group, *, layers: int, content: str, optimizer: str, steps: int, chunk: int, damping: float, initial
):
    """The same by another road: PEFT's LoRA on the merged model, torch.optim, one unrolled prompt at a time."""
    model = copy.deepcopy(tiny.model).merge_and_unload()
    model.set_attn_implementation("sdpa")
    count = model.config.num_hidden_layers
    last = range(count - layers if layers else 0, count)
    inside = "|".join(map(str, last))
    settings = LoraConfig(r=4, lora_alpha=4, target_modules=rf".*layers?\.({inside})\..*(dense|query|key|value|_proj)$")
    model = get_peft_model(model, settings).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    initial(model)
    kinds = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=tiny.rates["adamw"], weight_decay=0.0),
        "sgd": lambda p: torch.optim.SGD(p, lr=tiny.rates["sgd"]),
    }
    optimiser = kinds[optimizer](factors)
    told, found, waiting, writes = {}, [], [], 0
    for tree in group:
        (branch,) = tree.branches
        prompt = tiny.tokens.ids(unroll(tree, branch, told, tiny.wording))
        with torch.no_grad():
            scores = score_by_force(tiny, model, prompt)
        label = int(scores.argmax())
        told[branch.turn] = list(tiny.tokens.answers)[label]
        found.append(scores.exp().numpy())
        waiting.append((tree, prompt, label))
        if len(waiting) < chunk:
            continue
        for settings in optimiser.param_groups:
            settings["lr"] = tiny.rates[optimizer] / (1 + damping * writes)
        writes += 1
        for _ in range(steps):
            optimiser.zero_grad()
            for tree, prompt, label in waiting:
                loss = torch.zeros(())
                if content != "semantics":
                    loss = loss - score_by_force(tiny, model, prompt)[label]
                if content != "emotion":
                    loss = loss + tell_by_force(tiny, model, tree)
                (loss / chunk).backward()
            optimiser.step()
        waiting = []
    return np.array(found)


def score_by_force(tiny, model, prompt: list[int]) -> torch.Tensor:
    """log p of every label: at each token, among those with which some label that began so goes on."""
    answers = list(tiny.tokens.answers.values())
    scores = []
    for answer in answers:
        total = torch.zeros(())
        for depth, token in enumerate(answer):
            following = sorted(
                {other[depth] for other in answers if other[:depth] == answer[:depth] and depth < len(other)}
            )
            logits = model(torch.tensor([[*prompt, *answer[:depth]]]), use_cache=False).logits[0, -1]
            total = total + logits[following].log_softmax(dim=0)[following.index(token)]
        scores.append(total)
    return torch.stack(scores)


def tell_by_force(tiny, model, tree) -> torch.Tensor:
    """The mean loss of the last utterance's words, after everything that was said before."""
    before = tiny.tokens.ids(tree.trunk[: tree.spans[-1][0]])
    words = tiny.tokens.ids(tree.trunk[slice(*tree.spans[-1])])
    logits = model(torch.tensor([[*before, *words]]), use_cache=False).logits[0]
    return cross_entropy(logits[len(before) - 1 : -1], torch.tensor(words))


@pytest.mark.parametrize(
    ("layers", "content", "optimizer", "steps", "chunk", "damping"),
    [
        (1, "both", "adamw", 1, 1, 0.0),
        (0, "both", "adamw", 1, 1, 0.0),
        (1, "emotion", "sgd", 1, 1, 0.5),
        (1, "semantics", "adamw", 1, 1, 0.5),
        (2, "both", "adamw", 3, 1, 0.0),
        (1, "both", "sgd", 2, 2, 0.0),
    ],
)
def test_answers_and_writes_equal_those_of_peft_and_torch(
    tiny, groups, layers, content, optimizer, steps, chunk, damping
):
    settings = {"layers": layers, "content": content, "optimizer": optimizer, "steps": steps, "chunk": chunk}
    settings["damping"] = damping
    group, writers = groups[2], []
    right = Writer.__init__

    def keep(self, *inputs):
        right(self, *inputs)
        writers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "__init__", keep)
        found = remember(
            tiny, [group], slots=1, largest_rise=1e9, largest_size=1e9, rate=tiny.rates[optimizer], **settings
        )
    (factors,) = (writer.factors for writer in writers)

    def start_as_here(model):
        """Copy A, which is random, in the order of the modules."""
        a = [parameter for name, parameter in model.named_parameters() if "lora_A" in name]
        with torch.no_grad():
            for parameter, drawn in zip(a, factors.a.values(), strict=True):
                parameter.copy_(drawn)

    expected = answer_by_peft(tiny, group, **settings, initial=start_as_here)
    np.testing.assert_allclose(probabilities(found), expected, atol=2e-4)
    without = probabilities(remember(tiny, [group], slots=1, rate=1e-12))
    assert np.abs(probabilities(found) - without).max() > 5 * 2e-4  # what is written decides something


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("settings", [{}, {"chunk": 2, "steps": 2}, {"scope": "speaker"}])
def test_conversations_do_not_influence_each_other(tiny, groups, settings, both_ways):
    """One by one, many at once, in any order, in any slot, in rows of any size."""
    expected = [probabilities(remember(tiny, [group], slots=1, both_ways=both_ways, **settings)) for group in groups]
    for slots, row_tokens, order in (
        (1, 4096, range(5)),
        (2, 4096, (4, 2, 0, 1, 3)),
        (5, 150, range(5)),
        (8, 9999, (1, 0, 3, 4, 2)),
    ):
        found = remember(
            tiny,
            [groups[place] for place in order],
            slots=slots,
            row_tokens=row_tokens,
            both_ways=both_ways,
            **settings,
        )
        assert [one.answer.dialogue for one in found] == [t.dialogue for place in order for t in groups[place]]
        wanted = np.concatenate([expected[place] for place in order])
        np.testing.assert_allclose(probabilities(found), wanted, atol=1e-5)


@ONE_KIND
@pytest.mark.parametrize("both_ways", [False, True])
def test_the_first_answer_and_all_without_writing_are_those_without_memory(tiny, groups, both_ways):
    trees = [tree for group in groups for tree in group]
    ordinary = list(
        answer_trees(tiny.model, tiny.tokens, tiny.wording, trees, both_ways=both_ways, conversations=4, row_tokens=500)
    )
    plain = np.array([answer.probabilities for answer in ordinary])
    still = remember(tiny, groups, both_ways=both_ways, least_surprise=1e9)
    np.testing.assert_allclose(probabilities(still), plain, atol=1e-5)
    assert [one.answer.prompt for one in still] == [answer.prompt for answer in ordinary]
    assert not any(one.written for one in still)
    empty = remember(tiny, groups, both_ways=both_ways, content="none")
    assert probabilities(empty).tolist() == probabilities(still).tolist() and not any(one.written for one in empty)
    moved = remember(tiny, groups, both_ways=both_ways)
    firsts = np.cumsum([0, *map(len, groups)])[:-1]
    np.testing.assert_allclose(probabilities(moved)[firsts], plain[firsts], atol=1e-5)
    assert np.abs(probabilities(moved) - plain).max() > 0.005


@ONE_KIND
def test_later_turns_never_change_earlier_answers(tiny, groups, make_trees, talk):
    group = groups[2]
    expected = probabilities(remember(tiny, [group]))
    other = make_trees(tiny, [talk(np.random.default_rng(99), "other", 5)], window=2)
    for turn in range(1, 5):
        found = probabilities(remember(tiny, [[*group[:turn], *other[turn:]]]))
        np.testing.assert_allclose(found[:turn], expected[:turn], atol=1e-6)


@ONE_KIND
def test_base_and_task_weights_are_as_they_were_also_after_an_exception(tiny, groups, monkeypatch):
    before, hooks = hash_weights(tiny.model), count_hooks(tiny.model)
    remember(tiny, groups)
    assert (hash_weights(tiny.model), count_hooks(tiny.model)) == (before, hooks)
    right, calls = Writer._write, []

    def fail(self, *inputs):
        calls.append(right(self, *inputs))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(Writer, "_write", fail)
    with pytest.raises(KeyboardInterrupt):
        remember(tiny, groups)
    assert (hash_weights(tiny.model), count_hooks(tiny.model)) == (before, hooks)
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


def count_hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules())


@ONE_KIND
def test_what_diverges_is_rolled_back_and_counted(tiny, groups):
    plain = probabilities(remember(tiny, groups, least_surprise=1e9))
    for limits in ({"largest_size": 1e-6}, {"largest_rise": 0.0, "rate": 10.0, "optimizer": "sgd"}):
        found = remember(tiny, groups, **limits)
        assert any(one.undone for one in found) and all(one.written for one in found)
        if all(one.undone for one in found):
            np.testing.assert_allclose(probabilities(found), plain, atol=1e-5)
    assert all(one.undone for one in remember(tiny, groups, largest_size=1e-6))
    assert not any(one.undone for one in remember(tiny, groups, rate=1e-4))


@ONE_KIND
def test_gold_is_written_as_an_oracle_only(tiny, groups):
    def relabel(tree):
        return replace(
            tree, branches=tuple(replace(b, label="mad" if b.label != "mad" else "sad") for b in tree.branches)
        )

    changed = [[relabel(tree) for tree in group] for group in groups]
    for oracle in (False, True):
        before, after = (probabilities(remember(tiny, some, oracle=oracle)) for some in (groups, changed))
        assert np.array_equal(before, after) is not oracle


@ONE_KIND
def test_a_memory_of_several_dialogues_goes_on_where_one_of_each_begins_anew(tiny, groups):
    session = [*groups[0], *groups[2]]
    apart, together = probabilities(remember(tiny, groups[0:3:2])), probabilities(remember(tiny, [session]))
    np.testing.assert_allclose(together[:4], apart[:4], atol=1e-6)
    assert np.abs(together[4:] - apart[4:]).max(axis=1).min() > 1e-5


@ONE_KIND
def test_a_turn_sees_its_window_and_nothing_before_it(tiny, groups):
    """Without writing, utterances before the window decide nothing: also not by way of the lower layers."""
    trees = groups[2]
    for tree in trees[2:]:
        packed = TreeTokens(tree, tiny.tokens, tiny.wording, both_ways=False)
        assert len(tree.spans) == 2 and len(packed.trunk) == len(tiny.tokens.ids(tree.trunk))
    alone = [probabilities(remember(tiny, [[tree]], gold={}))[0] for tree in trees]
    found = probabilities(remember(tiny, [trees], gold={}, least_surprise=1e9))
    np.testing.assert_allclose(found, alone, atol=1e-5)


@ONE_KIND
def test_one_memory_for_each_speaker_is_loaded_when_they_speak(tiny, groups):
    group = groups[2]
    speakers = {tree.branches[0].speaker for tree in group}
    assert len(speakers) == 2
    found = remember(tiny, [group], scope="speaker", gold={})
    for speaker in speakers:
        own = [place for place, tree in enumerate(group) if tree.branches[0].speaker == speaker]
        alone = remember(tiny, [[group[place] for place in own]], gold={})
        np.testing.assert_allclose(probabilities(found)[own], probabilities(alone), atol=1e-5)


@ONE_KIND
def test_a_write_that_is_interrupted_is_undone_and_the_next_is_made(tiny, groups, monkeypatch):
    writer = Writer(
        tiny.model, tiny.tokens, Memory(layers=1, rank=4, optimizer="adamw", rate=tiny.rates["adamw"]), slots=1
    )
    thread = conversations.Thread(tiny.tokens, tiny.wording, both_ways=False, gold={})
    group = groups[2]
    writer.turn([thread.ask(group[0], 0, writer)])
    before = writer.factors.take([0])
    right = Writer._measure
    with monkeypatch.context() as patch:
        patch.setattr(Writer, "_measure", lambda *inputs, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            writer.turn([thread.ask(group[1], 0, writer)])
    assert Writer._measure is right
    after = writer.factors.take([0])
    assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in ("values", "moments", "steps"))
    writer.turn([thread.ask(group[2], 0, writer)])
    assert writer.factors.take([0]).steps.item() == 2 and writer.waiting(0)[0] == []


@ONE_KIND
def test_a_label_that_a_write_destroys_is_no_success_however_sure_it_was(tiny, groups):
    settings = {"content": "emotion", "by_confidence": True, "optimizer": "sgd", "largest_size": 1e9}
    found = remember(tiny, groups, rate=10.0, largest_rise=0.1, **settings)
    lax = remember(tiny, groups, rate=10.0, largest_rise=1e9, **settings)
    assert not any(one.undone for one in lax)
    sure = remember(tiny, groups, content="emotion", by_confidence=True)
    unsure = remember(tiny, groups, content="emotion")
    assert np.abs(probabilities(sure) - probabilities(unsure)).max() > 1e-3
    assert len(found) == len(lax)


@ONE_KIND
def test_decay_draws_the_memory_towards_nothing(tiny, groups):
    plain = probabilities(remember(tiny, groups, least_surprise=1e9))
    distances = [
        np.abs(probabilities(remember(tiny, groups, decay=decay, rate=0.005)) - plain).mean()
        for decay in (0.0, 0.5, 0.999)
    ]
    assert distances[0] > distances[1] > distances[2] > 0


@ONE_KIND
def test_the_modules_that_have_factors_are_those_asked_for(tiny):
    names = {
        which: set(Writer(tiny.model, tiny.tokens, Memory(layers=1, modules=which), 1).factors.layers)
        for which in ("all", "attention", "feed_forward")
    }
    assert names["attention"] == {f"0.self_attn.{name}_proj" for name in "qkvo"}
    assert names["feed_forward"] == {f"0.mlp.{name}_proj" for name in ("gate", "up", "down")}
    assert names["all"] == names["attention"] | names["feed_forward"]


@ONE_KIND
def test_gold_of_another_label_set_is_refused(tiny, groups):
    tree = replace(groups[0][0], branches=(replace(groups[0][0].branches[0], label="bored"),))
    with pytest.raises(DataError, match=r"d0-0: gold is 'bored', expected one of joyful, "):
        remember(tiny, [[tree]], oracle=True)
