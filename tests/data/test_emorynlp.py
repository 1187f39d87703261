import json
import re
from collections import Counter

import pytest
from erckit.data import emorynlp
from erckit.data.dialogue import Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.data.text import MOJIBAKE

HEADER = "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode,Start_Time,End_Time"
SAY = {
    "utterance_id": "s01_e02_c03_u001",
    "speakers": ["Monica Geller", "#ALL#"],
    "transcript": "It\u0092s me!",
    "tokens": [["It", "is"]],
    "emotion": "Joyful",
}


def test_json_keeps_official_ids_and_all_speakers_and_mends_escapes(tmp_path):
    path = write_scene(tmp_path, [SAY])

    dialogues, repairs = emorynlp.read_json(path)

    said = Utterance("s01_e02_c03_u001", ("Monica Geller", "#ALL#"), "It’s me!", "joyful")
    assert dialogues == [Dialogue("s01_e02_c03", (said,), session="s01_e02", begins=0)]
    assert repairs == {MOJIBAKE: 1}  # json.dumps escaped U+0092


def test_json_sources_are_the_lines_of_the_ids(tmp_path):
    path = write_scene(tmp_path, [SAY, SAY | {"utterance_id": "s01_e02_c03_u002"}])

    (dialogue,), _ = emorynlp.read_json(path)

    lines = path.read_text().splitlines()
    for utterance in dialogue.utterances:
        name, number = utterance.source.rsplit(":", 1)
        assert name == str(path)
        assert utterance.id in lines[int(number) - 1]


def test_lines_are_numbered_in_file_order(tmp_path):
    path = write(tmp_path, "EMORY_dev.txt", "\nAda\tHi.\tNeutral\r\nBen\tOh!\tScared\r\n\r\n \nAda\tYes.\tMad")

    dialogues, repairs = emorynlp.read_lines(path)

    assert dialogues == [
        Dialogue(
            "dev-0000",
            (
                Utterance("dev-0000-00", ("Ada",), "Hi.", "neutral"),
                Utterance("dev-0000-01", ("Ben",), "Oh!", "scared"),
            ),
        ),
        Dialogue("dev-0001", (Utterance("dev-0001-00", ("Ada",), "Yes.", "mad"),)),
    ]
    assert dialogues[1].utterances[0].source == f"{path}:6"
    assert not repairs


def test_csv_groups_by_scene_and_sorts_by_turn(tmp_path):
    rows = [
        '"Two, and\r\nmore.","[\'Ada\', ""Ben\'s Mum""]",Joyful,3,10,1,2,0,0',
        "Else.,['Cleo'],Mad,4,1,1,2,0,0",
        "One.,['Ada'],Sad,3,9,1,2,0,0",
    ]
    path = write(tmp_path, "emorynlp_dev_final.csv", "\r\n".join([HEADER, *rows]))

    (first, second), _ = emorynlp.read_csv(path)

    assert first == Dialogue(
        "s01_e02_c03",
        (
            Utterance("s01_e02_c03_u009", ("Ada",), "One.", "sad"),
            Utterance("s01_e02_c03_u010", ("Ada", "Ben's Mum"), "Two, and more.", "joyful"),
        ),
        session="s01_e02",
        begins=3,
    )
    assert [u.source.rsplit(":", 1)[1] for u in first.utterances] == ["5", "2"]  # a quoted line break moves the rest
    assert second.id == "s01_e02_c04"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ada\tHi.\tNeutral\nBen\tOh!", ":2: 2 fields, expected 3: speaker, text and emotion between tabs."),
        ("Ada\tHi.\tJoyfull", ":1: unknown label 'Joyfull'; expected one of joyful, mad, "),
        ("Ada\tHi.\tJoyfull", "Did you mean 'joyful'?"),
        ("Ada\t \tMad", ":1: utterance 'train-0000-00' has no text. Remove it or fill it."),
        (" \tHi.\tMad", ":1: utterance 'train-0000-00' has no speaker. Name who says it."),
    ],
)
def test_errors_in_lines_name_their_place(tmp_path, content, message):
    path = write(tmp_path, "EMORY_train.txt", content)

    with pytest.raises(DataError, match=re.escape(message)) as raised:
        emorynlp.read_lines(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Utterance,Speaker\nHi.,Ada", ":1: no column 'Emotion'; found Utterance, Speaker. Expected at least "),
        ("", ":1: no column 'Utterance'; found none. "),
        (f"{HEADER}\nHi, you.,['Ada'],Mad,1,1,1,1,0,0", ":2: 10 fields, expected 9 as in the header. "),
        (f"{HEADER}\nHi.,Ada,Mad,1,1,1,1,0,0", ":2: Speaker is 'Ada', expected a list in quotes such as "),
        (f"{HEADER}\nHi.,['Ada'],Mad,1,x,1,1,0,0", ":2: Utterance_ID is 'x', expected a whole number."),
        (f"{HEADER}\n\"Hi.,['Ada'],Mad,1,1,1,1,0,0\n", ":2: broken CSV (unexpected end of data). Check the quotes"),
    ],
)
def test_errors_in_csv_name_their_place(tmp_path, content, message):
    path = write(tmp_path, "emorynlp_train_final.csv", content)

    with pytest.raises(DataError, match=re.escape(f"{path}{message}")):
        emorynlp.read_csv(path)


def test_broken_json_names_its_line(tmp_path):
    path = write(tmp_path, "emotion-detection-dev.json", '{\n "episodes": [,]}')

    with pytest.raises(DataError, match=re.escape(f"{path}:2: broken JSON (Expecting value). Fetch or mend the file.")):
        emorynlp.read_json(path)


def test_json_of_another_shape_says_what_it_found(tmp_path):
    path = write(tmp_path, "emotion-detection-dev.json", '{"episodes": [{"episode_id": "s01_e02", "acts": []}]}')

    with pytest.raises(DataError, match=r"expected an object with 'scenes' \(a list\), found keys episode_id, acts\."):
        emorynlp.read_json(path)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ([], "dialogue 's01_e02_c03' has no utterances."),
        ([SAY | {"speakers": []}], "utterance 's01_e02_c03_u001' has no speaker."),
        ([SAY | {"emotion": "Peacefull"}], "unknown label 'Peacefull'; "),
        ([SAY, SAY], "dialogue 's01_e02_c03' has two utterances with the id 's01_e02_c03_u001'."),
    ],
)
def test_bad_scenes_are_errors(tmp_path, says, message):
    with pytest.raises(DataError, match=re.escape(message)):
        emorynlp.read_json(write_scene(tmp_path, says))


@pytest.mark.parametrize(("split", "suffix"), [("dev", "dev"), ("test", "tst")])
def test_the_three_forms_agree_on_the_real_data(real_data, split, suffix):
    folder = real_data / "emorynlp"
    official, _ = emorynlp.read_json(folder / f"emotion-detection-{suffix}.json")
    lines, _ = emorynlp.read_lines(folder / f"EMORY_{split}.txt")
    video, _ = emorynlp.read_csv(folder / f"emorynlp_{split}_final.csv")

    assert [said(d) for d in lines] == [said(d) for d in official]
    assert [first_speakers(d) for d in lines] == [first_speakers(d) for d in official]
    by_id = {d.id: d for d in official}
    for dialogue in video:  # a subset with the same ids, speakers and all, in the same order
        assert dialogue.session == by_id[dialogue.id].session
        assert dialogue.utterances == tuple(u for u in by_id[dialogue.id].utterances if u in dialogue.utterances)


def test_the_video_subset_of_train_agrees_with_the_lines(real_data):
    lines, _ = emorynlp.read_lines(real_data / "emorynlp" / "EMORY_train.txt")
    video, _ = emorynlp.read_csv(real_data / "emorynlp" / "emorynlp_train_final.csv")

    assert count(video) <= count(lines)


def said(dialogue):
    return [(u.text, u.label) for u in dialogue.utterances]


def first_speakers(dialogue):
    return [u.speakers[0] for u in dialogue.utterances]


def count(dialogues):
    return Counter((u.speakers[0], u.text, u.label) for d in dialogues for u in d.utterances)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode("utf-8"))
    return path


def write_scene(folder, utterances):
    scene = {"scene_id": "s01_e02_c03", "utterances": utterances}
    content = {"season_id": "dev", "episodes": [{"episode_id": "s01_e02", "scenes": [scene]}]}
    return write(folder, "emotion-detection-dev.json", json.dumps(content, indent=2))
