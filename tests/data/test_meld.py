import csv
import re

import pytest
from erckit.data import meld
from erckit.data.dialogue import Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.data.text import MOJIBAKE, WINDOWS_1252

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"


def test_rows_become_dialogues_in_turn_order(tmp_path):
    path = write(
        tmp_path,
        '2,"No, ""you’re"" not…",Joey and Chandler,anger,negative,12,10,8,21,"0:16:20,100","0:16:21,2"',
        "9,Else.,Ross,joy,positive,13,0,8,21,0:16:16.059,0",
        "1,Am I?,Ross,surprise,positive,12,9,8,21,0:16:19.3,0",
    )

    dialogues, repairs = meld.read_csv(path)

    assert dialogues == [
        Dialogue(
            "train-0012",
            (
                Utterance("train-0012-09", ("Ross",), "Am I?", "surprise"),
                Utterance("train-0012-10", ("Joey", "Chandler"), 'No, "you’re" not…', "anger"),
            ),
            session="s08_e21",
            begins=16 * 60 + 19,
        ),
        Dialogue("train-0013", (Utterance("train-0013-00", ("Ross",), "Else.", "joy"),), "s08_e21", 976),
    ]
    assert not repairs


def test_a_copy_without_times_has_no_sessions(tmp_path):
    path = tmp_path / "train_sent_emo.csv"
    path.write_text("Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\nOh.,Ross,joy,0,0\n")

    ((dialogue,), _) = meld.read_csv(path)

    assert (dialogue.session, dialogue.begins) == (None, 0)


def test_copies_with_damaged_encoding_read_like_the_right_one(tmp_path):
    row = "1,You’re so—so naïve…,Ross,joy,positive,0,0,8,21,0:16:16.059,0"
    right, _ = meld.read_csv(write(tmp_path, row))
    double = row.encode("utf-8").decode("windows-1252")
    controls = row.encode("windows-1252").decode("latin-1")

    assert meld.read_csv(write(tmp_path, double)) == (right, {MOJIBAKE: 1})
    assert meld.read_csv(write(tmp_path, controls)) == (right, {MOJIBAKE: 1})
    assert meld.read_csv(write(tmp_path, row, encoding="windows-1252")) == (right, {WINDOWS_1252: 1})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "1,Oh.,Ross,sad,negative,0,0,8,21,0:16:16.059,0",
            ":2: unknown label 'sad'; expected one of neutral, surprise, fear, ",
        ),
        ("1,Oh.,Ross,sad,negative,0,0,8,21,0:16:16.059,0", "Did you mean 'sadness'?"),
        ("1,Oh.,,joy,positive,0,0,8,21,0:16:16.059,0", ":2: utterance 'train-0000-00' has no speaker."),
        ("1,,Ross,joy,positive,0,0,8,21,0:16:16.059,0", ":2: utterance 'train-0000-00' has no text."),
        ("1,Oh.,Ross,joy,positive,0,0,8,x,0:00:01.5,0", ":2: Episode is 'x', expected a whole number."),
        ("1,Oh.,Ross,joy,positive,0,0,8,21,0:99,0", ":2: StartTime is '0:99', expected a time such as 00:16:16,059."),
        ("1,Oh.,Ross,joy,positive,-1,0,8,21,0:16:16.059,0", ":2: Dialogue_ID is '-1', expected a whole number."),
    ],
)
def test_errors_name_their_place(tmp_path, row, message):
    with pytest.raises(DataError, match=re.escape(message)):
        meld.read_csv(write(tmp_path, row))


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_real_data_loses_nothing(real_data, split):
    path = real_data / "meld" / f"{split}_sent_emo.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (int(row["Dialogue_ID"]), int(row["Utterance_ID"])))

    dialogues, repairs = meld.read_csv(path)

    read = [u for dialogue in sorted(dialogues, key=lambda d: d.id) for u in dialogue.utterances]
    assert [(" and ".join(u.speakers), u.text, u.label) for u in read] == [
        (row["Speaker"].strip(), " ".join(row["Utterance"].split()), row["Emotion"]) for row in rows
    ]
    assert not repairs  # the official file is right as it is
    assert all(dialogue.session for dialogue in dialogues)


def write(folder, *rows, encoding="utf-8"):
    path = folder / "train_sent_emo.csv"
    path.write_bytes("\r\n".join([HEADER, *rows, ""]).encode(encoding))
    return path
