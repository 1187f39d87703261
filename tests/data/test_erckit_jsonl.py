import json
import re

import pytest
from erckit.data.dialogue import Dialogue, Utterance
from erckit.data.erckit_jsonl import read_dialogues, read_labels, read_split, write_dialogues
from erckit.data.errors import DataError
from erckit.data.labels import LabelSet
from erckit.data.text import MOJIBAKE, WINDOWS_1252
from hypothesis import given
from hypothesis import strategies as st

LABELS = LabelSet(("mad", "sad", "neutral"))
SAY = {"speaker": "Ada", "text": "Hi.", "label": "mad"}
LINES = st.text(min_size=1).filter(lambda text: text == " ".join(text.split()) != "")
UTTERANCES = st.builds(
    Utterance,
    id=LINES,
    speakers=st.lists(LINES, min_size=1, max_size=3).map(tuple),
    text=LINES,
    label=st.none() | st.sampled_from(LABELS.names),
)
TALKS = st.lists(UTTERANCES, min_size=1, max_size=4, unique_by=lambda u: u.id).map(tuple)
DIALOGUES = st.builds(Dialogue, id=LINES, utterances=TALKS) | st.builds(
    Dialogue, id=LINES, utterances=TALKS, session=LINES, begins=st.integers()
)


@given(st.lists(DIALOGUES, max_size=3), st.sampled_from([LABELS, None]))
def test_what_is_written_is_read_back_equal(scratch, dialogues, labels):
    path = scratch / "dialogues.jsonl"
    write_dialogues(path, dialogues)

    assert read_dialogues(path, labels) == dialogues


def test_defaults_are_the_turn_as_id_and_no_label(tmp_path):
    says = [
        SAY,
        {"speaker": ["Ada", "Ben"], "text": "a\r\nb"},
        {"id": "x", "speaker": "Ada", "text": "c", "label": None},
    ]
    path = write(tmp_path, [{"id": "varnish", "utterances": says}])

    dialogues, repairs = read_split(path, LABELS)

    assert dialogues == [
        Dialogue(
            "varnish",
            (
                Utterance("varnish-00", ("Ada",), "Hi.", "mad"),
                Utterance("varnish-01", ("Ada", "Ben"), "a b", None),
                Utterance("x", ("Ada",), "c", None),
            ),
        )
    ]
    assert dialogues[0].utterances[0].source == f"{path}:1"
    assert not repairs


def test_a_users_file_is_mended_and_a_written_one_is_taken_as_it_is(tmp_path):
    line = {"id": "d", "utterances": [SAY | {"text": "youâ€™re"}, SAY | {"text": "I\x92m"}]}
    path = write(tmp_path, [line])  # escaped: the damage shows only in the strings

    (mended,), repairs = read_split(path, LABELS)

    assert [u.text for u in mended.utterances] == ["you’re", "I’m"]
    assert repairs == {MOJIBAKE: 2}
    assert [u.text for u in read_dialogues(path, LABELS)[0].utterances] == ["youâ€™re", "I\x92m"]


def test_a_users_file_may_be_windows_1252(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"id": "d", "utterances": [{"speaker": "Luc\xeda", "text": "It\x92s me."}]}\r\n')

    (dialogue,), repairs = read_split(path, LABELS)

    assert dialogue.utterances == (Utterance("d-00", ("Lucía",), "It’s me."),)
    assert repairs == {WINDOWS_1252: 1}


@pytest.mark.parametrize(
    ("read", "changes"),
    [
        (read_dialogues, {"text": "Hi \ud800"}),
        (read_dialogues, {"speaker": ["Ada", "\udc00"]}),
        (read_dialogues, {"id": "\ud800"}),
        (read_split, {"id": "\ud800"}),
    ],
)
def test_half_a_character_is_refused_where_it_cannot_be_mended(tmp_path, read, changes):
    path = write(tmp_path, [{"id": "fine", "utterances": [SAY]}, {"id": "d", "utterances": [SAY | changes]}])

    with pytest.raises(DataError, match=f"^{re.escape(str(path))}:2: .* holds half a character .a lone surrogate"):
        read(path, LABELS)


def test_half_a_character_in_a_users_text_is_mended_and_in_the_id_of_a_dialogue_refused(tmp_path):
    path = write(tmp_path, [{"id": "d", "utterances": [SAY | {"text": "Hi \ud800"}]}])
    (dialogue,), repairs = read_split(path, LABELS)
    assert (dialogue.utterances[0].text, repairs) == ("Hi \ufffd", {MOJIBAKE: 1})

    path = write(tmp_path, [{"id": "\ud800", "utterances": [SAY]}])
    with pytest.raises(DataError, match=re.escape(rf"{path}:1: '\ud800' holds half a character")):
        read_split(path, LABELS)


@pytest.mark.parametrize("read", [read_dialogues, read_split])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "broken JSON (Expecting property name enclosed in double quotes, column "),
        ("[1]", "dialogue is [1], expected an object with id, utterances, session, begins."),
        (
            {"id": "d", "utterance": [SAY]},
            "dialogue has the unknown key 'utterance'; expected id, utterances, session, begins.",
        ),
        ({"id": "d", "utterance": [SAY]}, "Did you mean 'utterances'?"),
        ({"id": "d"}, "dialogue has no 'utterances'; found id. Add it."),
        ({"id": "d", "utterances": []}, "dialogue 'd' has no utterances. Remove it or fill it."),
        ({"id": "d", "utterances": "Hi."}, "'utterances' of dialogue 'd' is 'Hi.', expected a list."),
        ({"id": "d", "utterances": [SAY], "session": 3}, "'session' of dialogue 'd' is 3, expected a name or null."),
        ({"id": "d", "utterances": [SAY], "session": "s", "begins": 0.5}, "'begins' of dialogue 'd' is 0.5, expected"),
        ({"id": "d", "utterances": [SAY], "begins": 1}, "dialogue 'd' has 'begins' but no 'session'"),
        ({"id": 3, "utterances": [SAY]}, "the id of the dialogue is 3, expected a string that names it."),
        (("emotion", "mad"), "utterance 'd-00' has the unknown key 'emotion'; expected id, speaker, text, label."),
        (("speakers", ["Ada"]), "Did you mean 'speaker'?"),
        (("speaker", 3), "'speaker' of 'd-00' is 3, expected a name or a list of names."),
        (("speaker", []), "utterance 'd-00' has no speaker. Name who says it."),
        (("speaker", " "), "utterance 'd-00' has no speaker. Name who says it."),
        (("text", ""), "utterance 'd-00' has no text. Remove it or fill it."),
        (("text", None), "'text' of 'd-00' is None, expected a string."),
        (("label", "mat"), "unknown label 'mat'; expected one of mad, sad, neutral. Did you mean 'mad'?"),
        (("label", 1), "'label' of 'd-00' is 1, expected a label or null."),
    ],
)
def test_errors_name_the_line_and_the_remedy(tmp_path, read, line, message):
    if isinstance(line, tuple):
        line = {"id": "d", "utterances": [SAY | dict([line])]}
    path = write(tmp_path, [{"id": "fine", "utterances": [SAY]}, line])

    with pytest.raises(DataError, match=re.escape(message)) as raised:
        read(path, LABELS)
    assert str(raised.value).startswith(f"{path}:2: ")


def test_an_utterance_needs_text(tmp_path):
    path = write(tmp_path, [{"id": "d", "utterances": [{"speaker": "Ada"}]}])

    with pytest.raises(DataError, match=re.escape(":1: utterance 'd-00' has no 'text'; found speaker. Add it.")):
        read_split(path, LABELS)


def test_labels_come_from_labels_json_in_its_order_else_sorted_from_train(tmp_path):
    write(tmp_path, [{"id": "d", "utterances": [SAY, SAY | {"label": "Glad"}, SAY | {"label": None}]}])
    assert read_labels(tmp_path) == LabelSet(("glad", "mad"))

    (tmp_path / "labels.json").write_text('["sad", "mad"]')
    assert read_labels(tmp_path) == LabelSet(("sad", "mad"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"mad": 0}', "expected a JSON list of label names in order"),
        ('["mad"]', "a label set needs at least two different labels, found ['mad']. Mend the labels there."),
        ('["mad", "Sad"]', "labels are lower-case names without blanks around them"),
    ],
)
def test_a_bad_label_list_is_an_error(tmp_path, content, message):
    (tmp_path / "labels.json").write_text(content)

    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'labels.json'}: {message}")):
        read_labels(tmp_path)


def write(folder, lines):
    path = folder / "train.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path
