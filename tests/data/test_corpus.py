import json
import re
import shutil

import pytest
from erckit.data.corpus import FORMS, check_training_labels, read_corpus
from erckit.data.dialogue import SPLITS, Corpus, Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.data.labels import EMORYNLP, MELD, LabelSet
from erckit.data.text import MOJIBAKE

EMORY_HEADER = "Utterance,Speaker,Emotion,Scene_ID,Utterance_ID,Season,Episode"
MELD_HEADER = "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID"


def test_every_form_is_recognised_whatever_the_folder_is_called(tmp_path):
    for form, write in WRITERS.items():
        folder = tmp_path / f"holds no {form}"
        write(folder)

        corpus = read_corpus(folder)

        assert corpus.form == form
        assert corpus == read_corpus(folder, form)
        assert list(corpus.dialogues) == list(SPLITS)
        assert corpus.name == ("emorynlp" if "emory" in form else "meld" if "meld" in form else folder.name)


def test_a_tiny_corpus_departs_from_the_published_counts(tmp_path):
    write_meld(tmp_path)

    assert read_corpus(tmp_path).differences == (
        "train: 1 dialogues, published 1,038 or 1,039.",
        "train: 7 labelled utterances, published 9,989.",
        "dev: 1 dialogues, published 114.",
        "dev: 7 labelled utterances, published 1,109.",
        "test: 1 dialogues, published 280.",
        "test: 7 labelled utterances, published 2,610.",
    )


def test_the_form_with_most_utterances_wins_and_the_others_are_named(tmp_path):
    write_lines(tmp_path, extra="Ada\tMore.\tMad\n")
    write_emory_csv(tmp_path)
    write_json(tmp_path)
    (tmp_path / "emotion-detection-trn.json").unlink()
    (tmp_path / "train.jsonl").write_text('{"turns": []}\n')

    corpus = read_corpus(tmp_path)

    assert corpus.form == "emorynlp-text"
    assert corpus.differences[-3:] == (
        "emorynlp-csv is also complete here, with 21 utterances; emorynlp-text was read, with 24.",
        "emorynlp-json was passed over: it lacks emotion-detection-trn.json.",
        "erckit-jsonl was passed over: no '\"utterances\"' at the beginning of train.jsonl.",
    )


def damage_line(folder):
    path = folder / "dev_sent_emo.csv"
    path.write_text(path.read_text() + "\r\nHi.,Ada")
    return f"{path}:9: 2 fields, expected 5 as in the header. Put quotes around text that holds commas."


def repeat_dialogue(folder):
    rows = (folder / "train_sent_emo.csv").read_text().replace(",0,", ",1,").splitlines()
    path = folder / "train_sent_emo.csv"
    path.write_text("\n".join([*rows, *rows[1:]]))
    return f"{path}:2: dialogue 'train-0001' has two utterances with the id 'train-0001-00'. "


@pytest.mark.parametrize("damage", [damage_line, repeat_dialogue])
def test_a_damaged_form_does_not_block_a_good_one(tmp_path, damage):
    write_meld(tmp_path)
    write_erckit(tmp_path)
    wrong = damage(tmp_path)

    corpus = read_corpus(tmp_path)

    assert corpus.form == "erckit-jsonl"
    assert [d for d in corpus.differences if d.startswith(f"meld-csv was passed over: {wrong}")]
    with pytest.raises(DataError, match=f"^{re.escape(wrong)}"):
        read_corpus(tmp_path, "meld-csv")


def test_where_no_form_can_be_read_the_first_error_is_raised(tmp_path):
    write_meld(tmp_path)
    write_erckit(tmp_path)
    wrong = damage_line(tmp_path)
    (tmp_path / "dev.jsonl").write_text('{"utterances": []}\n')

    with pytest.raises(DataError, match=f"^{re.escape(wrong)}$"):
        read_corpus(tmp_path)


def test_equal_forms_are_settled_by_their_order(tmp_path):
    write_lines(tmp_path)
    write_json(tmp_path)

    assert read_corpus(tmp_path).form == "emorynlp-json"


def test_repairs_of_all_splits_add_up(tmp_path):
    write_lines(tmp_path, extra="Ada\tyouâ€™re\tMad\n")

    corpus = read_corpus(tmp_path)

    assert corpus.repairs == {MOJIBAKE: 3}
    assert all(corpus.dialogues[split][0].utterances[-1].text == "you’re" for split in SPLITS)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'none'}: no such folder. Give the folder that holds")):
        read_corpus(tmp_path / "none")


def test_an_unknown_form_names_the_nearest(tmp_path):
    message = "unknown form 'meld'; expected one of auto, emorynlp-json, emorynlp-text, "
    with pytest.raises(DataError, match=re.escape(message) + r".*Did you mean 'meld-csv'\?"):
        read_corpus(tmp_path, "meld")


def test_a_folder_without_a_corpus_says_what_is_there_and_what_is_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")

    message = (
        f"{tmp_path}: no corpus recognised; found notes.txt. Expected all files of one form: emorynlp-json: emotion-"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        read_corpus(tmp_path)
    with pytest.raises(DataError, match="no corpus recognised; found no files"):
        (tmp_path / "empty").mkdir()
        read_corpus(tmp_path / "empty")


def test_a_folder_around_a_corpus_names_the_one_inside(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "release").mkdir()
    write_erckit(tmp_path / "release")

    message = f"{tmp_path}: no corpus recognised; found a/, release/. Did you mean {tmp_path / 'release'}? Expected all"
    with pytest.raises(DataError, match=re.escape(message)):
        read_corpus(tmp_path)


def test_a_missing_split_is_an_error_that_names_it(tmp_path):
    write_erckit(tmp_path)
    (tmp_path / "test.jsonl").unlink()

    message = "found dev.jsonl, train.jsonl. erckit-jsonl was passed over: it lacks test.jsonl."
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: no corpus recognised; {message}")):
        read_corpus(tmp_path)
    message = f"{tmp_path / 'test.jsonl'} is missing; found dev.jsonl, train.jsonl. Add it, or choose another form."
    with pytest.raises(DataError, match=re.escape(message)):
        read_corpus(tmp_path, "erckit-jsonl")


def test_a_missing_column_is_an_error_under_auto_too(tmp_path):
    write_meld(tmp_path)
    path = tmp_path / "dev_sent_emo.csv"
    path.write_text(path.read_text().replace("Speaker", "Who"))

    message = (
        f"{path}:1: no column 'Speaker'; found Utterance, Who, Emotion, Dialogue_ID, Utterance_ID. Expected at least"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        read_corpus(tmp_path)


def test_an_unknown_label_in_dev_is_an_error(tmp_path):
    write_erckit(tmp_path)
    (tmp_path / "dev.jsonl").write_text(
        '{"id": "x", "utterances": [{"speaker": "Ada", "text": "a", "label": "mat"}]}\n'
    )

    message = f"{tmp_path / 'dev.jsonl'}:1: unknown label 'mat'; expected one of mad, sad. Did you mean 'mad'?"
    with pytest.raises(DataError, match=re.escape(message)):
        read_corpus(tmp_path)


def test_a_split_without_dialogues_is_an_error(tmp_path):
    write_lines(tmp_path)
    (tmp_path / "EMORY_dev.txt").write_text("\t\n \n")

    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'EMORY_dev.txt'}: no dialogues.")):
        read_corpus(tmp_path)


def test_a_dialogue_in_two_splits_is_an_error(tmp_path):
    write_erckit(tmp_path)
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "test.jsonl")

    message = f"{tmp_path / 'test.jsonl'}:1: dialogue 'train' was already read from {tmp_path / 'train.jsonl'}:1."
    with pytest.raises(DataError, match=re.escape(message)):
        read_corpus(tmp_path)


def test_a_label_without_training_example_is_an_error(tmp_path):
    write_erckit(tmp_path)
    (tmp_path / "labels.json").write_text('["mad", "sad", "disgust", "fear"]')

    message = f"{tmp_path.name}: train has no example of 'disgust' or 'fear', and what is never seen is never learned."
    with pytest.raises(DataError, match=re.escape(message)):
        read_corpus(tmp_path)


def test_the_check_of_training_labels_looks_at_train_alone():
    says = [Utterance(f"u{label}", ("Ada",), "a", label) for label in ("mad", "sad")]
    splits = {"train": (Dialogue("a", tuple(says)),), "dev": (), "test": ()}

    check_training_labels(Corpus("c", "f", LabelSet(("mad", "sad")), splits))
    moved = {"train": (Dialogue("a", (says[0],)),), "dev": (Dialogue("b", (says[1],)),), "test": ()}
    with pytest.raises(DataError, match="train has no example of 'sad'"):
        check_training_labels(Corpus("c", "f", LabelSet(("mad", "sad")), moved))


@pytest.mark.parametrize(
    ("name", "form", "labels", "dialogues", "utterances"),
    [
        ("emorynlp", "emorynlp-text", EMORYNLP, (713, 99, 85), (9934, 1344, 1328)),
        ("emorynlp", "emorynlp-csv", EMORYNLP, (659, 89, 79), (7551, 954, 984)),
        ("meld", "meld-csv", MELD, (1038, 114, 280), (9989, 1109, 2610)),
    ],
)
def test_the_real_corpora_have_the_published_counts(real_data, name, form, labels, dialogues, utterances):
    corpus = read_corpus(real_data / name, form)

    assert (corpus.name, corpus.labels) == (name, labels)
    assert tuple(len(corpus.dialogues[split]) for split in SPLITS) == dialogues
    assert tuple(sum(len(d.utterances) for d in corpus.dialogues[split]) for split in SPLITS) == utterances
    assert not corpus.repairs
    assert corpus.differences == ((FORMS[form].note,) if FORMS[form].note else ())


def test_the_real_emorynlp_folder_is_read_from_its_largest_form(real_data):
    corpus = read_corpus(real_data / "emorynlp")

    assert corpus.form == "emorynlp-text"
    assert corpus.differences[1:] == (
        "emorynlp-csv is also complete here, with 9,489 utterances; emorynlp-text was read, with 12,606.",
        "emorynlp-json was passed over: it lacks emotion-detection-trn.json.",
    )


def write_json(folder):
    for name, split in zip(FORMS["emorynlp-json"].files, SPLITS, strict=True):
        says = [
            {"utterance_id": f"{split}_{label}", "speakers": ["Ada"], "transcript": "Hi.", "emotion": label}
            for label in EMORYNLP
        ]
        content = {"episodes": [{"episode_id": split, "scenes": [{"scene_id": split, "utterances": says}]}]}
        write(folder / name, json.dumps(content))


def write_lines(folder, extra=""):
    for name in FORMS["emorynlp-text"].files:
        write(folder / name, "".join(f"Ada\tHi.\t{label.title()}\n" for label in EMORYNLP) + extra)


def write_emory_csv(folder):
    for season, name in enumerate(FORMS["emorynlp-csv"].files):
        rows = [f"Hi.,['Ada'],{label.title()},1,{turn},{season},1" for turn, label in enumerate(EMORYNLP)]
        write(folder / name, "\n".join([EMORY_HEADER, *rows]))


def write_meld(folder):
    for name in FORMS["meld-csv"].files:
        rows = [f"Hi.,Ada,{label},0,{turn}" for turn, label in enumerate(MELD)]
        write(folder / name, "\r\n".join([MELD_HEADER, *rows]))


def write_erckit(folder):
    for name, split in zip(FORMS["erckit-jsonl"].files, SPLITS, strict=True):
        says = [{"speaker": "Ada", "text": "Hi.", "label": label} for label in ("sad", "mad")]
        write(folder / name, json.dumps({"id": split, "utterances": says}) + "\n")


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode("utf-8"))


WRITERS = {
    "emorynlp-json": write_json,
    "emorynlp-text": write_lines,
    "emorynlp-csv": write_emory_csv,
    "meld-csv": write_meld,
    "erckit-jsonl": write_erckit,
}
