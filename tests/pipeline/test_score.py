"""Anybody's answers are scored in every form that names an utterance, and what is wrong in them is named by line."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
from erckit.data.corpus import read_corpus
from erckit.data.errors import DataError
from erckit.data.files import write_json, write_json_lines
from erckit.pipeline.cli import main
from erckit.pipeline.score import read_answers, read_gold, score_answers
from sklearn.metrics import brier_score_loss, f1_score

LABELS = ("calm", "glad", "gloomy")


@pytest.fixture
def gold(tmp_path) -> Path:
    """Two dialogues, the ids of their utterances only unique within each, the last utterance labelled by nobody."""
    said = [["glad", "calm"], ["gloomy", "glad", None]]
    dialogues = [
        {
            "id": f"d{place}",
            "utterances": [
                {"id": f"u{turn}", "speaker": "Ada", "text": "So.", "label": label} for turn, label in enumerate(labels)
            ],
        }
        for place, labels in enumerate(said)
    ]
    path = tmp_path / "gold.jsonl"
    write_json_lines(path, dialogues)
    return path


ANSWERS = [("d0", 0, "glad"), ("d0", 1, "glad"), ("d1", 0, "gloomy"), ("d1", 1, "gloomy")]


def write_csv(path: Path, head: list[str], rows: list) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


FORMS = {
    "turns.csv": (["dialogue", "turn", "label"], lambda d, t, label: [d, t, label]),
    "ids.csv": (["label", "utterance", "dialogue", "note"], lambda d, t, label: [label, f"u{t}", d, "x"]),
    "slash.csv": (["id", "label"], lambda d, t, label: [f"{d}/{t}", label.upper()]),
    "turns.jsonl": (["dialogue", "turn", "label"], lambda d, t, label: [d, t, label]),
    "ids.jsonl": (["dialogue", "utterance", "turn", "label"], lambda d, t, label: [d, f"u{t}", 99, label]),
    "slash.jsonl": (["utterance", "label"], lambda d, t, label: [f"{d}/{t}", label]),
}


def write_answers(folder: Path, form: str, answers: list = ANSWERS) -> Path:
    head, row = FORMS[form]
    rows = [row(*answer) for answer in answers]
    if form.endswith(".csv"):
        return write_csv(folder / form, head, rows)
    write_json_lines(folder / form, [dict(zip(head, one, strict=True)) for one in rows])
    return folder / form


@pytest.mark.parametrize("form", FORMS)
def test_every_form_names_the_same_utterances(gold, tmp_path, form):
    path = write_answers(tmp_path, form, ANSWERS[::-1])  # the order does not matter
    dialogues, labels, _ = read_gold(gold, "test")
    found = read_answers(path, dialogues, labels)

    assert tuple(labels) == LABELS
    assert [(one.dialogue, one.turn, one.label) for one in found] == ANSWERS
    assert [one.gold for one in found] == ["glad", "calm", "gloomy", "glad"]
    scores = score_answers(path, gold, "test")
    expected = f1_score([one.gold for one in found], [one.label for one in found], average="weighted", zero_division=0)
    assert scores["w_f1"] == pytest.approx(100 * expected)
    assert scores["utterances"] == 4 and scores["accuracy"] == 50.0 and "calibration" not in scores


def test_a_table_of_another_program_is_read_as_it_comes(gold, tmp_path):
    path = write_answers(tmp_path, "turns.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert score_answers(path, gold, "test")["accuracy"] == 50.0


def test_probabilities_are_taken_in_where_all_have_them(gold, tmp_path):
    rows = [
        {
            "dialogue": d,
            "turn": t,
            "label": label,
            "probabilities": {name: 0.5 if name == label else 0.25 for name in LABELS},
        }
        for d, t, label in ANSWERS
    ]
    write_json_lines(tmp_path / "a.jsonl", rows)
    found = score_answers(tmp_path / "a.jsonl", gold, "test")
    probabilities = [[row["probabilities"][label] for label in LABELS] for row in rows]
    truth = ["glad", "calm", "gloomy", "glad"]
    assert found["calibration"]["brier"] == pytest.approx(brier_score_loss(truth, probabilities, scale_by_half=False))
    assert found["calibration"]["ece"] == pytest.approx(0.0)  # half of them are right
    write_json_lines(tmp_path / "a.jsonl", [{**rows[0], "probabilities": None}, *rows[1:]])
    assert "calibration" not in score_answers(tmp_path / "a.jsonl", gold, "test")


def test_answers_to_a_corpus_are_scored_by_its_split_with_groups_of_speakers(tiny_corpus, tmp_path):
    corpus = read_corpus(tiny_corpus)
    for split in ("dev", "test"):
        rows = [
            {"dialogue": d.id, "turn": turn, "label": "neutral"}
            for d in corpus.dialogues[split]
            for turn in range(len(d.utterances))
        ]
        write_json_lines(tmp_path / "a.jsonl", rows)
        found = score_answers(tmp_path / "a.jsonl", tiny_corpus, split)
        truth = [u.label for d in corpus.dialogues[split] for u in d.utterances]
        assert found["accuracy"] == pytest.approx(100 * truth.count("neutral") / len(truth))
        trained = {name for d in corpus.dialogues["train"] for u in d.utterances for name in u.speakers}
        seen = [u for d in corpus.dialogues[split] for u in d.utterances if trained >= set(u.speakers)]
        assert found["groups"]["speaker"]["seen"]["utterances"] == len(seen)


def test_the_predictions_of_a_run_score_as_its_metrics_say(gold, tmp_path, capsys):
    record = {"speaker": "Ada", "text": "So.", "gold": "calm", "oracle": True, "prompt": "?", "made_with": None}
    rows = [
        record | {"dialogue": d, "utterance": f"u{t}", "turn": t, "label": label, "probabilities": {}}
        for d, t, label in ANSWERS
    ]
    write_json_lines(tmp_path / "a.jsonl", rows)
    assert main(["score", str(tmp_path / "a.jsonl"), str(gold)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("4 labelled utterances in 2 dialogues, of an oracle\n")
    assert re.search(r"^\| accuracy +\| 50\.00 \| \[", printed, flags=re.MULTILINE)
    assert "| turns 2 to 5" in printed and "training" not in printed


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "id,label\nd0/0,glad\nd0/0,calm\n", "a.csv:3: a second answer to 'u0' (turn 0 of 'd0'), the first is "
         "{folder}/a.csv:2. Keep one of the two."),
        ("a.csv", "id,label\nd0/2,glad\n", "a.csv:2: there is no utterance 'd0/2'; turns count from 0. Did "
         "you mean 'd1/2'?"),
        ("a.csv", "id,label\nx,glad\n", "a.csv:2: there is no utterance 'x'; turns count from 0. Are these answers to "
         "another split?"),
        ("a.csv", "id,label\nu1,glad\n", "a.csv:2: 'u1' names 2 utterances, such as 'u1' (turn 1 of 'd0') and 'u1' "
         "(turn 1 of 'd1'). Give its `dialogue` too."),
        ("a.csv", "id,label\nd0/0,happy\n", "a.csv:2: unknown label 'happy'; expected one of calm, glad, gloomy."),
        ("a.csv", "id,emotion\nd0/0,glad\n", "a.csv:1: no column 'label'; found id, emotion."),
        ("a.csv", "name,label\nd0/0,glad\n", "a.csv:2: names no utterance, found name, label. Expected `utterance`, or "
         "`dialogue` and `turn`."),
        ("a.csv", "dialogue,turn,label\nd0,one,glad\n", "a.csv:2: turn is 'one', expected a whole number from 0 on."),
        ("a.csv", f"dialogue,turn,label\nd0,{'9' * 5000},glad\n", f"a.csv:2: turn is '{'9' * 79}, expected a whole"),
        ("a.csv", "id,label\nd0/0,glad\nd1/1,glad\n", "a.csv: no answer to 2 of 4 labelled utterances, the first of "
         "them 'u1' (turn 1 of 'd0'), {folder}/gold.jsonl:1. Add them."),
        ("a.jsonl", '{"id": "d0/0", "label": "glad"\n', "a.jsonl:1: broken JSON ("),
        ("a.jsonl", '\n["d0/0", "glad"]\n', "a.jsonl:2: found ['d0/0', 'glad'], expected an object with an utterance "
         "and a label."),
        ("a.jsonl", '{"id": "d0/0", "label": 3}\n', "a.jsonl:1: label is 3, expected one of calm, glad, gloomy."),
        ("a.jsonl", '{"id": "d0/0", "label": "glad", "probabilities": {"glad": 1}}\n', "a.jsonl:1: probabilities is "
         "{{'glad': 1}}, expected one for each of calm, glad, gloomy."),
        ("a.jsonl", '{"id": "d0/0", "label": "glad", "probabilities": {"calm": 0, "glad": 0.5, "gloomy": 0.2}}\n',
         "a.jsonl:1: probabilities are [0, 0.5, 0.2], expected numbers that sum to 1."),
        ("nowhere.csv", None, "nowhere.csv: no such file. Check the path."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_file_and_line(gold, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/{message.format(folder=tmp_path)}")):
        score_answers(tmp_path / name, gold, "test")


def test_an_id_that_is_also_another_utterance_by_its_turn_is_not_guessed(tmp_path):
    dialogues = [
        {"id": "d", "utterances": [{"id": "d/1", "speaker": "Ada", "text": "So.", "label": "glad"} for _ in range(1)]},
        {"id": "e", "utterances": [{"speaker": "Ada", "text": "So.", "label": "calm"}]},
    ]
    dialogues[0]["utterances"].append({"id": "d/0", "speaker": "Ada", "text": "So.", "label": "calm"})
    write_json_lines(tmp_path / "gold.jsonl", dialogues)
    path = write_csv(tmp_path / "a.csv", ["id", "label"], [["d/1", "glad"]])
    with pytest.raises(DataError, match=re.escape("a.csv:2: 'd/1' names 2 utterances")):
        score_answers(path, tmp_path / "gold.jsonl", "test")
    path = write_csv(
        tmp_path / "a.csv",
        ["id", "dialogue", "label"],
        [["d/1", "d", "glad"], ["d/0", "d", "glad"], ["e-00", "e", "glad"]],
    )
    assert score_answers(path, tmp_path / "gold.jsonl", "test")["accuracy"] == pytest.approx(100 / 3)


def test_labels_of_a_file_are_those_that_stand_beside_it(gold, tmp_path):
    write_json(tmp_path / "labels.json", ["glad", "calm", "gloomy", "mad"])
    assert list(read_gold(gold, "test")[1]) == ["glad", "calm", "gloomy", "mad"]
    gold.write_text(gold.read_text() * 2)
    with pytest.raises(DataError, match=re.escape("gold.jsonl:3: dialogue 'd0' was already read from")):
        read_gold(gold, "test")


def test_what_looks_at_answers_imports_no_model(gold, tmp_path):
    path = write_answers(tmp_path, "turns.csv")
    code = "import sys, erckit.pipeline.compare, erckit.pipeline.ablation, erckit.pipeline.sweep\n"
    code += f"from erckit.pipeline.cli import main\nmain(['score', {str(path)!r}, {str(gold)!r}])\n"
    code += "sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stderr.split()) & {"torch", "transformers", "sklearn", "sentence_transformers", "faiss"}


def test_the_metric_of_dailydialog_stands_beside_the_others(tmp_path, capsys):
    truth, said = ["no emotion", "anger", "no emotion", "fear"], ["no emotion", "anger", "fear", "no emotion"]
    utterances = [{"speaker": "Ada", "text": "So.", "label": label} for label in truth]
    write_json_lines(tmp_path / "gold.jsonl", [{"id": "d", "utterances": utterances}])
    path = write_csv(tmp_path / "a.csv", ["id", "label"], [[f"d/{turn}", label] for turn, label in enumerate(said)])

    assert main(["score", str(path), str(tmp_path / "gold.jsonl")]) == 0
    expected = 100 * f1_score(truth, said, labels=["anger", "fear"], average="micro")
    assert re.search(rf"^\| micro F1 without neutral \| {expected:.2f} \| \[", capsys.readouterr().out, re.MULTILINE)
