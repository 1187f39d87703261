"""Conversations of one's own: labelled as in bulk, streamed, and the same file however often work on it stopped."""

import fcntl
import io
import itertools
import json
import re
import sys
import tracemalloc
from collections import Counter
from types import SimpleNamespace

import pytest
from erckit.data.erckit_jsonl import read_dialogues
from erckit.data.errors import DataError
from erckit.data.files import read_json, write_json, write_sealed
from erckit.data.labels import EMORYNLP
from erckit.pipeline import labelling
from erckit.pipeline.cli import main
from erckit.pipeline.config import Config, Data, Memory, Model, Predict
from erckit.pipeline.labelling import label_file, label_lines
from erckit.pipeline.predictions import read_predictions
from erckit.pipeline.recognizer import Recognized, Recognizer

MEMORY = Memory(window=2, layers=1, rank=4, rate=0.02, slots=1)
SCOPES = [None, *(MEMORY.model_copy(update={"scope": scope}) for scope in ("dialogue", "session", "speaker"))]
TOGETHER = 2
BLOCK = 4


def to_line(number: int, turns: int = 2, **keys) -> bytes:
    """A dialogue without labels, as a line."""
    said = [{"speaker": ("Ada", "Ben")[turn % 2], "text": f"Number {number}, so {turn}."} for turn in range(turns)]
    return json.dumps({"id": f"d{number}", **keys, "utterances": said}).encode() + b"\n"


def of_sessions(count: int) -> bytes:
    """Dialogues in sessions of three, but for each tenth, which is of none."""
    placed = [{} if n % 10 == 9 else {"session": f"s{n // 3}", "begins": n} for n in range(count)]
    return b"".join(to_line(n, 1 + n % 3, **keys) for n, keys in enumerate(placed))


class Killed(BaseException):
    """Stands for SIGKILL, which no `except Exception` catches either."""


class Fake:
    """Answers at once. A probability tells which call it came from, as the last digits of real ones do."""

    def __init__(self, identity="one"):
        model = Model(device="cpu")
        self.config = Config(name="fake", data=Data(path="none"), model=model, predict=Predict(conversations=TOGETHER))
        self.identity = identity

    def predict(self, dialogues, memory=None):
        for place, dialogue in enumerate(dialogues):
            for utterance in dialogue.utterances:
                share = (place + 1) / 1000
                found = {"mad": share, "sad": 1 - share}
                yield Recognized(dialogue.id, utterance.id, "sad", found, "", "", None if memory is None else True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(labelling, "ROUNDS", BLOCK // TOGETHER)


@pytest.fixture(scope="module")
def recognizer(make_adapter):
    _, folder, _ = make_adapter("qwen2")
    found = Recognizer.load(folder)
    found.config = found.config.model_copy(update={"predict": Predict(conversations=TOGETHER)})
    return found


@pytest.fixture
def own(tmp_path):
    """A file of dialogues that end in the middle of a block."""
    path = tmp_path / "own.jsonl"
    path.write_bytes(of_sessions(2 * BLOCK + 3))
    return path


@pytest.mark.parametrize("memory", SCOPES)
def test_a_file_is_labelled_as_dialogues_are_in_bulk(recognizer, own, tmp_path, memory):
    counts = label_file(recognizer, own, tmp_path / "out.jsonl", memory)

    dialogues = read_dialogues(own, None)
    said = [(d, turn, u) for d in dialogues for turn, u in enumerate(d.utterances)]
    found = read_predictions(tmp_path / "out.jsonl", EMORYNLP)
    assert [(p.dialogue, p.utterance, p.turn, p.speaker, p.text, p.gold) for p in found] == [
        (d.id, u.id, turn, u.speaker, u.text, None) for d, turn, u in said
    ]
    for one, other in zip(found, recognizer.predict(dialogues, memory), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert one.label == max(one.probabilities, key=one.probabilities.__getitem__)
    assert counts["dialogues"] == len(dialogues) and counts["utterances"] == len(said)
    assert ("turns written" in counts) is (memory is not None)
    assert {path.name for path in tmp_path.iterdir()} == {"own.jsonl", "out.jsonl"}


def stop_after(monkeypatch, answers: int) -> None:
    """Raise `Killed` in place of writing an answer, after so many."""
    left, write = itertools.count(answers, -1), labelling._to_line

    def to_line_or_die(answer):
        if next(left) == 0:
            raise Killed
        return write(answer)

    monkeypatch.setattr(labelling, "_to_line", to_line_or_die)


@pytest.mark.parametrize("memory", SCOPES)
def test_work_that_is_killed_and_resumed_gives_the_same_bytes(recognizer, own, tmp_path, monkeypatch, capsys, memory):
    label_file(recognizer, own, tmp_path / "whole.jsonl", memory)
    for answers in (11, 2):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            stop_after(patch, answers)
            label_file(recognizer, own, tmp_path / "out.jsonl", memory)
    capsys.readouterr()
    label_file(recognizer, own, tmp_path / "out.jsonl", memory)

    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    anew = f"  note: {tmp_path / 'out.jsonl.part'} ends before its first block does; beginning anew.\n"
    went_on = capsys.readouterr().out
    assert went_on == anew if memory and memory.scope == "speaker" else went_on.startswith("  going on after ")


@pytest.mark.parametrize("memory", SCOPES)
def test_a_kill_between_any_two_lines_loses_nothing_and_repeats_nothing(own, tmp_path, memory):
    """Each time, what stands behind the last whole block in the file that was begun is lost in part."""
    label_file(Fake(), own, tmp_path / "whole.jsonl", memory)
    out, record = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part.json"
    for lines in itertools.count(step=29):
        left = itertools.count(lines, -1)

        def trace(frame, event, argument, left=left):
            if frame.f_code.co_filename != labelling.__file__:
                return None
            if event == "line" and next(left) == 0:
                raise Killed
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            label_file(Fake(), own, out, memory)
            ended = True
        except Killed:
            ended = False
        finally:
            sys.settrace(before)
        if (part := tmp_path / "out.jsonl.part").exists():
            kept = json.loads(record.read_text())["output_bytes"] if record.exists() else 0
            part.write_bytes(part.read_bytes()[: (kept + part.stat().st_size + 1) // 2])
        if not ended:
            label_file(Fake(), own, out, memory)
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
        assert {path.name for path in tmp_path.iterdir()} == {"own.jsonl", "whole.jsonl", "out.jsonl"}
        out.unlink()
        if ended:
            break
    assert lines > 300  # the loop really went through the lines


@pytest.mark.parametrize("memory", SCOPES)
def test_what_is_endless_is_answered_as_it_comes(recognizer, memory):
    read = []

    def lines():
        for number in itertools.count():
            read.append(number)
            yield to_line(number, session=f"s{number // 3}", begins=number)

    answers = label_lines(recognizer, lines(), memory)
    for number in range(2 * BLOCK):
        for turn in range(2):
            assert json.loads(next(answers))["utterance"] == f"d{number}-{turn:02d}"
            assert len(read) - number <= BLOCK + 1


def test_memory_does_not_grow_with_the_input():
    def peak(count):
        tracemalloc.start()
        answered = sum(1 for _ in label_lines(Fake(), map(to_line, range(count))))
        (_, most), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
        assert answered == 2 * count
        return most

    peak(BLOCK)
    assert peak(40 * BLOCK) < 1.5 * peak(4 * BLOCK)


# What goes wrong.


@pytest.mark.parametrize("memory", SCOPES)
def test_a_line_that_is_no_dialogue_is_told_and_all_before_it_kept(own, tmp_path, memory, capsys):
    lines = own.read_bytes().splitlines(keepends=True)
    out, bad = tmp_path / "out.jsonl", len(lines) - 3
    own.write_bytes(b"".join([*lines[:bad], b'{"id": "d"}\n', *lines[bad + 1 :]]))
    message = f"{own}:{bad + 1}: dialogue has no 'utterances'; found id. Add it."
    with pytest.raises(DataError, match=re.escape(message)):
        label_file(Fake(), own, out, memory)
    part = tmp_path / "out.jsonl.part"
    answered = [json.loads(line)["dialogue"] for line in part.read_text().splitlines()]
    assert list(dict.fromkeys(answered)) == [f"d{number}" for number in range(bad)] and not out.exists()
    assert capsys.readouterr().out == f"  what came before the error is answered in {part}\n"

    own.write_bytes(b"".join(lines))  # mended, and then as if it had never been wrong
    label_file(Fake(), own, out, memory)
    label_file(Fake(), own, tmp_path / "whole.jsonl", memory)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_circumstances_than_at_the_beginning_are_refused(own, tmp_path, monkeypatch):
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_after(patch, 17)
        label_file(Fake(), own, out)
    other = (
        f"{part}: begun with another model, adapter, memory or version of erckit, or cut short since. Give the same "
        f"command again, or remove {part.name} and {part.name}.json to begin anew."
    )
    for recognizer, memory in ((Fake("another"), None), (Fake(), MEMORY)):
        with pytest.raises(DataError, match=re.escape(other)):
            label_file(recognizer, own, out, memory)
    lines = own.read_bytes()
    own.write_bytes(lines.replace(b"Number 3,", b"Number 4,"))
    message = f"{own}: its first {2 * BLOCK} lines are not those that {part} was begun with. Give it the same ones, or"
    with pytest.raises(DataError, match=re.escape(message)):
        label_file(Fake(), own, out)
    own.write_bytes(lines + to_line(99))  # what was not read yet may change
    assert label_file(Fake(), own, out)["dialogues"] == 2 * BLOCK + 4


@pytest.mark.parametrize("change", [lambda record: [], lambda record: {}, lambda record: record | {"output_bytes": 0}])
def test_a_record_that_somebody_changed_is_refused(own, tmp_path, monkeypatch, change):
    out, record = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part.json"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_after(patch, 17)
        label_file(Fake(), own, out)
    write_json(record, change(read_json(record)))
    message = f"{record}: its content is not what erckit wrote there. Remove it and out.jsonl.part to begin anew."
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        label_file(Fake(), own, out)
    record.unlink()
    (tmp_path / "out.jsonl.part").unlink()
    assert label_file(Fake(), own, out)["dialogues"] == len(own.read_bytes().splitlines())


def test_a_file_that_is_there_is_never_overwritten(own, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(DataError, match=re.escape(f"{out}: it is there already. Name another --output, or remove it.")):
        label_file(Fake(), own, out)
    write_sealed(tmp_path / "out.jsonl.part.json", {"output_bytes": 3})  # of something else
    with pytest.raises(DataError, match="it is there already"):
        label_file(Fake(), own, out)
    assert out.read_text() == "mine"


def test_two_processes_do_not_write_one_file(own, tmp_path):
    part = tmp_path / "out.jsonl.part"
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=re.escape(f"{part}: another erckit process writes it. Wait until it")):
            label_file(Fake(), own, tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    "lines, memory, message",
    [
        ([to_line(1), to_line(1)], None, ":2: dialogue 'd1' has the id of the one before it. Give it one of its own."),
        (
            [to_line(1, session="s", begins=5), to_line(2, session="s", begins=4)],
            SCOPES[2],
            ":2: dialogue 'd2' begins before 'd1', which stands before it in session 's', and memories are kept of "
            "sessions. Sort them by 'begins'.",
        ),
        ([b"\n", b"  \n"], None, ": no dialogues. Expected erckit's form, a dialogue a line."),
        (
            [b"\xff\xfe{\0}\0\n\0"],
            None,
            ":1: found a NUL byte, expected text (binary file, or UTF-16?). Save it as UTF-8.",
        ),
        ([to_line(1)], MEMORY.model_copy(update={"oracle": True}), "`memory.oracle` writes gold emotions, and these"),
    ],
)
def test_what_cannot_be_labelled_is_refused(tmp_path, lines, memory, message):
    own = tmp_path / "own.jsonl"
    own.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=re.escape(message)):
        label_file(Fake(), own, tmp_path / "out.jsonl", memory)
    with pytest.raises(DataError, match=re.escape(message)):
        list(label_lines(Fake(), lines, memory))


def test_repairs_are_counted_once_however_often_work_stops(own, tmp_path, monkeypatch):
    own.write_bytes(own.read_bytes().replace(b"Number 3,", b"caf\xe9,").replace(b"Number 9,", b"caf\xe9,"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_after(patch, 17)
        label_file(Fake(), own, tmp_path / "out.jsonl")
    counts = label_file(Fake(), own, tmp_path / "out.jsonl")
    expected = Counter(line.count(b"\xe9") > 0 for line in own.read_bytes().splitlines())
    assert counts["lines read as Windows-1252"] == expected[True] > 0


# The command.


def test_the_command_labels_a_file(make_adapter, own, capsys):
    _, folder, _ = make_adapter("qwen2")
    assert main(["predict", str(folder), "--input", str(own)]) == 0
    out = own.with_name("own.labelled.jsonl")
    said = own.read_text().count('"text"')
    assert capsys.readouterr().out == f"{out}: {2 * BLOCK + 3} dialogues, {said} utterances\n"
    assert len(read_predictions(out, EMORYNLP)) == said
    memory = ["--memory", "--set", "memory.scope=session", "--set", "memory.layers=1"]
    assert main(["predict", str(folder), "--input", str(own), "--output", str(own.with_name("m.jsonl")), *memory]) == 0
    assert f", {said} utterances, {said} turns written, " in capsys.readouterr().out


def test_the_command_reads_standard_input_and_writes_answers_alone(make_adapter, monkeypatch, capsysbinary):
    _, folder, _ = make_adapter("qwen2")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(to_line(1) + to_line(2))))
    assert main(["predict", str(folder), "--input", "-"]) == 0
    lines = capsysbinary.readouterr().out.splitlines()
    assert [json.loads(line)["utterance"] for line in lines] == ["d1-00", "d1-01", "d2-00", "d2-01"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--memory"], "--output and --memory go with --input FILE, the conversations to label. Name it."),
        (["--input", "x", "--seeds", "2"], "with --input, --set sets memory.* alone, and there is one seed: all else"),
        (["--input", "x", "--set", "train.epochs=2"], "with --input, --set sets memory.* alone, and there is one seed"),
        (["--input", "-", "--output", "x"], "--input - writes to standard output. Leave out --output."),
        (["--input", "x"], "nowhere: neither a run (it has no config.yaml) nor an adapter that erckit made"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    assert main(["predict", "nowhere", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"erckit: {message}")


def test_a_wrong_setting_of_the_memory_is_told(make_adapter, own, capsys):
    _, folder, _ = make_adapter("qwen2")
    command = ["predict", str(folder), "--input", str(own), "--memory", "--set", "memory.scoop=session"]
    assert main(command) == 2
    assert "memory.scoop: unknown key, did you mean memory.scope?" in capsys.readouterr().err
    assert main([*command[:-2], "--input", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl: no such file. Name one in erckit's form, a dialogue a line." in capsys.readouterr().err
