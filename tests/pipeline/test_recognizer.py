"""The face for programs gives what the stages give, live and in bulk."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import erckit
import numpy as np
import pytest
import torch
from erckit.data.dialogue import Dialogue, Utterance, by_session
from erckit.data.erckit_jsonl import write_dialogues
from erckit.data.errors import DataError
from erckit.data.files import write_sealed
from erckit.pipeline.adapter import read_card
from erckit.pipeline.artefacts import load_dialogues, load_labels
from erckit.pipeline.chat import HELP, chat, describe
from erckit.pipeline.cli import main
from erckit.pipeline.config import Memory, load_config
from erckit.pipeline.memory.conversations import show_window
from erckit.pipeline.predictions import read_predictions
from erckit.pipeline.recognizer import Recognizer
from erckit.pipeline.run import Run, run_stages
from erckit.pipeline.stages import predict
from erckit.prompts.tree import unroll
from peft import PeftModel
from transformers import AutoModelForCausalLM

MEMORY = Memory(window=2, layers=1, rank=4, optimizer="adamw", rate=0.02, slots=2)
SETTINGS = [f"memory.{name}={value}" for name, value in MEMORY.model_dump(exclude_unset=True).items()]


@pytest.fixture(scope="module")
def trained(begin):
    """A run of the tiny configuration, with full history, up to its predictions."""
    config, run = begin("prompts.history=full")
    run_stages(config, run, last="predict")
    return run


@pytest.fixture(scope="module")
def recognizer(trained):
    return Recognizer.load(trained.folder)


@pytest.fixture(scope="module")
def dialogues(trained):
    return load_dialogues(trained, "test")


def test_in_bulk_it_answers_as_the_predict_stage_did(trained, recognizer, dialogues):
    expected = read_predictions(trained.path("predict", "test.jsonl"), load_labels(trained))
    found = list(recognizer.predict(dialogues))
    assert [(a.dialogue, a.utterance, a.label, a.prompt) for a in found] == [
        (p.dialogue, p.utterance, p.label, p.prompt) for p in expected
    ]
    for answer, prediction in zip(found, expected, strict=True):
        assert answer.probabilities == pytest.approx(dict(prediction.probabilities), abs=1e-6)
        assert answer.written is None


@pytest.mark.parametrize("memory", [None, MEMORY, MEMORY.model_copy(update={"scope": "speaker"})])
def test_live_it_answers_as_in_bulk(recognizer, dialogues, memory):
    for dialogue in dialogues:
        conversation = recognizer.conversation(memory)
        live = [conversation.add(u.speakers, u.text) for u in dialogue.utterances]
        bulk = list(recognizer.predict([dialogue], memory))
        assert [(a.label, a.prompt, a.facts, a.written) for a in live] == [
            (a.label, a.prompt, a.facts, a.written) for a in bulk
        ]
        for one, other in zip(live, bulk, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert any(answer.facts for answer in live)


@pytest.mark.parametrize("scope", ["dialogue", "session", "speaker"])
def test_with_a_memory_too_it_answers_as_the_predict_stage_did(trained, dialogues, scope, tmp_path):
    """The stage restores the order of the corpus where dialogues of a session are shuffled in it."""
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    run = Run(folder, seed=1)
    places = [("s", 2), ("", 0), ("t", 0), ("s", 1), ("s", 0)]
    shuffled = [
        replace(dialogue, id=f"{place}-{dialogue.id}", session=session or None, begins=begins)
        for place, (dialogue, (session, begins)) in enumerate(zip(dialogues * 5, places, strict=False))
    ]
    for split in ("dev", "test"):
        write_dialogues(run.path("ingest", f"dialogues.{split}.jsonl"), shuffled)
    config = load_config(str(folder / "config.yaml"), ["predict.memory=true", f"memory.scope={scope}", *SETTINGS])
    said = re.fullmatch(r".*, (\d+) turns written, (\d+) writes undone", predict.run(config, run))
    predictions = read_predictions(run.path("predict", "test.jsonl"), load_labels(run))
    assert [(p.dialogue, p.utterance) for p in predictions] == [(d.id, u.id) for d in shuffled for u in d.utterances]
    ordered = [d for session in by_session(shuffled) for d in session] if scope == "session" else shuffled
    found = {(a.dialogue, a.utterance): a for a in Recognizer.load(folder).predict(ordered, config.memory)}
    assert said
    assert [int(said[1]), int(said[2])] == [2 * len(found), 2 * sum(one.undone for one in found.values())]
    for prediction in predictions:
        one = found[prediction.dialogue, prediction.utterance]
        assert (prediction.label, prediction.prompt) == (one.label, one.prompt)
        assert prediction.probabilities == pytest.approx(dict(one.probabilities), abs=1e-5)
    if scope == "session":  # which remembers more than its dialogues do by themselves
        alone = {(a.dialogue, a.utterance): a.probabilities for a in Recognizer.load(folder).predict(ordered, MEMORY)}
        changed = {key[0] for key in found if found[key].probabilities != pytest.approx(alone[key], abs=1e-4)}
        assert changed == {shuffled[0].id, shuffled[3].id}


def test_bulk_is_streamed(recognizer, dialogues):
    """The second dialogue is not read before answers to the first are due, whatever its length."""
    read = []

    def tell():
        for dialogue in dialogues * 50:
            read.append(dialogue.id)
            yield dialogue

    for memory in (None, MEMORY):
        read.clear()
        answers = recognizer.predict(tell(), memory)
        next(answers)
        assert len(read) < 50
        answers.close()


def test_two_conversations_and_bulk_work_do_not_disturb_each_other(recognizer, dialogues):
    first, second = dialogues[:2]

    def talk(dialogue):
        conversation = recognizer.conversation(MEMORY)
        for utterance in dialogue.utterances:
            yield conversation.add(utterance.speakers, utterance.text)

    apart = [[a.probabilities for a in talk(dialogue)] for dialogue in (first, second)]
    bulk = recognizer.predict(dialogues, MEMORY)
    woven: list = [[], []]
    for one, other in zip(talk(first), talk(second), strict=False):
        woven[0].append(one.probabilities)
        woven[1].append(other.probabilities)
        next(bulk)
    for alone, together in zip(apart, woven, strict=True):
        assert together and together == alone[: len(together)]


def test_forgetting_leaves_what_was_said(recognizer, dialogues):
    dialogue = dialogues[0]
    kept, forgetful = recognizer.conversation(MEMORY), recognizer.conversation(MEMORY)
    plain = recognizer.conversation(MEMORY.model_copy(update={"least_surprise": 1e9}))
    last = []
    for conversation in (kept, forgetful, plain):
        for utterance in dialogue.utterances[:-1]:
            conversation.add(utterance.speakers, utterance.text)
        if conversation is forgetful:
            conversation.forget()
        last.append(conversation.add(dialogue.utterances[-1].speakers, dialogue.utterances[-1].text))
    assert dialogue.utterances[-2].text in last[1].prompt
    if last[1].prompt == last[2].prompt:  # what it felt before may differ
        assert last[1].probabilities == pytest.approx(last[2].probabilities, abs=1e-6)
    difference = np.abs(np.subtract(list(last[0].probabilities.values()), list(last[1].probabilities.values())))
    assert difference.max() > 1e-4


def test_an_adapter_by_itself_knows_nobody(trained, dialogues):
    alone = Recognizer.load(trained.path("train", "adapter"))
    answer = alone.conversation().add("Nadia", "Who left the hatch open?")
    assert "Nadia is new" in answer.prompt and answer.facts == ""
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_a_name_is_spelt_as_in_training(recognizer, dialogues):
    name = dialogues[0].utterances[0].speakers[0]
    conversation = recognizer.conversation()
    assert f"{name}: So." in conversation.add(name.upper(), "So.").prompt
    assert "Somebody Else" in conversation.add("Somebody Else", "So.").prompt


def test_what_is_no_utterance_is_refused_and_changes_nothing(recognizer):
    conversation, untouched = recognizer.conversation(), recognizer.conversation()
    conversation.add("Ada", "So.")
    untouched.add("Ada", "So.")
    with pytest.raises(DataError, match="turn 1: utterance '1' has no text. Remove it or fill it."):
        conversation.add("Ada", "  ")
    with pytest.raises(DataError, match="turn 1: utterance '1' has no speaker. Name who says it."):
        conversation.add([], "So.")
    assert conversation.add("Ben", "No.") == untouched.add("Ben", "No.")


def test_half_a_character_is_replaced_live_and_in_bulk(recognizer):
    halved, whole = ("Ada \ud83d", "So \udc00."), ("Ada \ufffd", "So \ufffd.")
    live = [recognizer.conversation().add(*said) for said in (halved, whole)]
    dialogues = [Dialogue("conversation", (Utterance("0", (name,), text),)) for name, text in (halved, whole)]
    assert live[0] == live[1] and "Ada \ufffd: So \ufffd." in live[0].prompt
    assert [found.prompt for found in recognizer.predict(dialogues)] == [live[0].prompt] * 2


def test_a_folder_that_is_neither_run_nor_adapter_is_refused(tmp_path):
    message = f"{tmp_path}: neither a run (it has no config.yaml) nor an adapter that erckit made"
    with pytest.raises(DataError, match=re.escape(message)):
        Recognizer.load(tmp_path)


def test_later_utterances_change_nothing(recognizer, dialogues):
    dialogue = dialogues[0]
    whole = list(recognizer.predict([dialogue], MEMORY))
    part = list(recognizer.predict([replace(dialogue, utterances=dialogue.utterances[:3])], MEMORY))
    assert [a.prompt for a in part] == [a.prompt for a in whole[:3]]
    for one, other in zip(part, whole, strict=False):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_importing_erckit_is_instant_and_has_its_face():
    code = "import sys, erckit; assert 'torch' not in sys.modules; erckit.Memory; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert erckit.Recognizer is Recognizer and set(erckit.__all__) == {"Memory", "Recognizer"}
    with pytest.raises(AttributeError, match="module 'erckit' has no attribute 'Recogniser'"):
        erckit.Recogniser  # noqa: B018


# Saved and taken up again.


@pytest.mark.parametrize(
    "memory",
    [
        None,
        MEMORY,
        MEMORY.model_copy(update={"chunk": 3, "steps": 2}),
        MEMORY.model_copy(update={"scope": "speaker"}),
        MEMORY.model_copy(update={"optimizer": "sgd", "damping": 0.5}),
    ],
)
def test_a_conversation_that_is_resumed_goes_on_bit_equal(recognizer, dialogues, memory, tmp_path):
    said = dialogues[0].utterances
    assert len(said) >= 5
    for stop in range(len(said)):
        whole, first = recognizer.conversation(memory), recognizer.conversation(memory)
        for utterance in said[:stop]:
            first.add(utterance.speakers, utterance.text)
        first.save(tmp_path / "talk.safetensors")
        again = recognizer.resume(tmp_path / "talk.safetensors")
        expected = [whole.add(u.speakers, u.text) for u in said]
        assert [again.add(u.speakers, u.text) for u in said[stop:]] == expected[stop:]


def test_a_conversation_of_another_model_or_a_broken_file_is_refused(recognizer, trained, tmp_path):
    alone, path = Recognizer.load(trained.path("train", "adapter")), tmp_path / "talk.safetensors"
    conversation = recognizer.conversation(MEMORY)
    conversation.add("Ada", "So.")
    conversation.save(path)
    with pytest.raises(DataError, match="saved with another model, adapter or wording"):
        alone.resume(path)
    whole = path.read_bytes()
    for broken in (whole[:40], b"", whole[:-8], b"x" * 500):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=re.escape(f"{path}: ")):
            recognizer.resume(path)
    with pytest.raises(DataError, match="no such file. Name one that `conversation.save` wrote."):
        recognizer.resume(tmp_path / "other")


def test_a_save_that_fails_leaves_the_file_before_it(recognizer, tmp_path, monkeypatch):
    path, conversation = tmp_path / "talk.safetensors", recognizer.conversation(MEMORY)
    conversation.save(path)
    before = path.read_bytes()
    conversation.add("Ada", "So.")

    def fill(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fill)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
        conversation.save(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_temporary_adapter_is_one_that_plain_peft_loads(recognizer, trained, dialogues, tmp_path):
    conversation = recognizer.conversation(MEMORY.model_copy(update={"scale": 2.0}))
    for utterance in dialogues[0].utterances[:-1]:
        conversation.add(utterance.speakers, utterance.text)
    conversation.export(tmp_path / "memory")
    last = conversation.add(dialogues[0].utterances[-1].speakers, dialogues[0].utterances[-1].text)

    base = AutoModelForCausalLM.from_pretrained(recognizer.config.model.name, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(trained.path("train", "adapter"))).eval()
    without = model
    model.load_adapter(str(tmp_path / "memory"), "memory")
    scores = []
    for active in (["default", "memory"], ["default"]):
        model.base_model.set_adapter(active)
        tokens, choices = recognizer.task.tokens, recognizer.task.tokens.choices
        ids = tokens.ids(last_pieces(recognizer, dialogues[0], conversation))
        with torch.no_grad():
            scores.append([score(without, ids, answer, choices) for answer in tokens.answers.values()])
    assert list(last.probabilities.values()) == pytest.approx(scores[0], abs=1e-5)
    assert list(last.probabilities.values()) != pytest.approx(scores[1], abs=1e-4)
    with pytest.raises(DataError, match="there is no one temporary adapter"):
        recognizer.conversation().export(tmp_path / "none")


def last_pieces(recognizer, dialogue, conversation):
    """The prompt of the last utterance, as pieces."""
    (tree,) = recognizer.plant(dialogue, show_window(recognizer.task, MEMORY), first=len(dialogue.utterances) - 1)
    return unroll(tree, tree.branches[0], conversation._felt, recognizer.task.wording)


def score(model, ids, answer, choices) -> float:
    """p(answer | prompt) among the answers, token by token."""
    p = 1.0
    for depth, token in enumerate(answer):
        if allowed := choices.get(answer[:depth]):
            logits = model(torch.tensor([[*ids, *answer[:depth]]]), use_cache=False).logits[0, -1]
            p *= float(logits[list(allowed)].softmax(dim=0)[allowed.index(token)])
    return p


# In the terminal.


def test_a_chat_answers_line_by_line(recognizer, tmp_path):
    lines = [
        "Ada: Who left the hatch open?\n",
        "\n",
        "nothing\n",
        "Ben:\n",
        "/forget\n",
        f"/save {tmp_path / 'talk'}\n",
    ]
    said = list(chat(recognizer.conversation(MEMORY), lines))
    expected = describe(recognizer.conversation(MEMORY).add("Ada", "Who left the hatch open?"))
    assert said[:2] == [HELP, expected] and expected.endswith(", written") and expected.count(" %") == 3
    assert said[2] == f"  found no ':'. {HELP}" and "has no text" in said[3]
    assert said[4:] == ["  forgotten", f"  saved: {tmp_path / 'talk'}"]
    assert len(recognizer.resume(tmp_path / "talk")._utterances) == 1


def test_the_command_chat_reads_standard_input(trained, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", ["Ada: So.\n"])
    assert main(["chat", str(trained.folder), "--memory"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(", written")
    assert main(["chat", str(trained.folder / "nowhere")]) == 2
    assert "neither a run" in capsys.readouterr().err


def test_names_are_spelt_alike_live_and_in_bulk(recognizer, dialogues, monkeypatch):
    """In other spellings, by another name, and twice in one utterance."""
    name = dialogues[0].utterances[0].speakers[0]
    monkeypatch.setitem(recognizer.speakers.names, "the captain", name)
    for speakers in ((name.upper(),), ("The Captain",), (name, name.upper(), "Somebody")):
        said = [replace(u, speakers=speakers, id=str(turn)) for turn, u in enumerate(dialogues[0].utterances[:2])]
        bulk = list(recognizer.predict([replace(dialogues[0], utterances=tuple(said))]))
        conversation = recognizer.conversation()
        assert [conversation.add(u.speakers, u.text).prompt for u in said] == [found.prompt for found in bulk]
        assert name in bulk[0].prompt and name.upper() not in bulk[0].prompt


def test_an_oracle_is_marked_in_bulk_and_refused_live(recognizer, dialogues):
    oracle = MEMORY.model_copy(update={"oracle": True})
    assert all(found.oracle for found in recognizer.predict(dialogues[:1], oracle))
    assert not any(found.oracle for found in recognizer.predict(dialogues[:1], MEMORY))
    with pytest.raises(DataError, match="`memory.oracle` writes gold emotions, and a live conversation has none."):
        recognizer.conversation(oracle)


def test_an_adapter_with_a_card_of_something_else_is_refused(trained, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(trained.path("train", "adapter"), folder)
    card = read_card(folder)
    del card["attention"]
    write_sealed(folder / "erckit.json", card)
    with pytest.raises(DataError, match=re.escape(f"{folder}/erckit.json: not written by this version of erckit")):
        Recognizer.load(folder)


def test_a_chat_survives_a_save_that_fails(recognizer, tmp_path):
    said = list(chat(recognizer.conversation(), ["Ada: So.", f"/save {tmp_path}", "/forget", "Ben: No."]))
    assert "irectory" in said[2] and said[3].startswith("  there is no memory") and len(said) == 5
