import re

import pytest
from erckit.data import dailydialog
from erckit.data.corpus import read_corpus
from erckit.data.dialogue import SPLITS, Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.data.labels import DAILYDIALOG
from erckit.data.reading import NO_TEXT
from erckit.data.speakers import identify_speakers
from erckit.data.text import MOJIBAKE


def test_lines_of_both_files_become_dialogues(tmp_path):
    write(
        tmp_path,
        "dev",
        "Say , Jim , a beer ? __eou__ You know that is tempting . __eou__ Come on ! __eou__\n"
        "It 's over . __eou__ Oh , no ! __eou__ \r\n",
        "0 0 4 \n5 6 \n",
    )

    dialogues, repairs = dailydialog.read_split(tmp_path, "dev")

    assert dialogues == [
        Dialogue(
            "dev-00000",
            (
                Utterance("dev-00000-00", ("A1",), "Say , Jim , a beer ?", "no emotion"),
                Utterance("dev-00000-01", ("B1",), "You know that is tempting .", "no emotion"),
                Utterance("dev-00000-02", ("A1",), "Come on !", "happiness"),
            ),
        ),
        Dialogue(
            "dev-00001",
            (
                Utterance("dev-00001-00", ("A4",), "It 's over .", "sadness"),
                Utterance("dev-00001-01", ("B4",), "Oh , no !", "surprise"),
            ),
        ),
    ]
    assert dialogues[1].utterances[0].source == f"{tmp_path}/validation/dialogues_validation.txt:2"
    assert not repairs


def test_copies_with_and_without_the_last_end_and_blanks_read_alike(tmp_path):
    variants = [
        "One . __eou__ Two . __eou__\n",
        "One . __eou__ Two . __eou__ \n\n",
        "One . __eou__ Two .",
        "One.__eou__Two.",
    ]
    read = []
    for line in variants:
        write(tmp_path, "test", line, "1 2")
        read.append(
            [(u.text.replace(" .", "."), u.label) for u in dailydialog.read_split(tmp_path, "test")[0][0].utterances]
        )

    assert read == [[("One.", "anger"), ("Two.", "disgust")]] * len(variants)


def test_damaged_encoding_is_mended_and_an_utterance_without_text_left_out_with_its_emotion(tmp_path):
    write(tmp_path, "train", "Iâ€™m mad . __eou__  __eou__ Why ? __eou__\n", "1 4 3 \n")

    (dialogue,), repairs = dailydialog.read_split(tmp_path, "train")

    assert dialogue.utterances == (
        Utterance("train-00000-00", ("A0",), "I’m mad .", "anger"),
        Utterance("train-00000-02", ("A0",), "Why ?", "fear"),  # still said by the first of the two
    )
    assert repairs == {MOJIBAKE: 1, NO_TEXT: 1}


def test_nobody_speaks_in_two_dialogues_and_names_tell_no_split(tmp_path):
    every_label = "Hi . __eou__ " * 7 + "\n", "0 1 2 3 4 5 6 \n"
    for split, count in zip(SPLITS, (7, 3, 2), strict=True):
        write(tmp_path, split, *(lines * count for lines in every_label))

    corpus, registry = identify_speakers(read_corpus(tmp_path), {})

    spoken = [
        {name for utterance in dialogue.utterances for name in utterance.speakers}
        for split in SPLITS
        for dialogue in corpus.dialogues[split]
    ]
    assert [len(names) for names in spoken] == [2] * 12
    assert len(set().union(*spoken)) == len({speaker.id for speaker in registry}) == 24
    assert all(re.fullmatch(r"[AB]\d+", name) for names in spoken for name in names)
    assert sum(speaker.seen for speaker in registry) == 14  # those of train alone


def test_a_folder_is_recognised_and_its_departures_are_told(tmp_path):
    write_corpus(tmp_path)

    corpus = read_corpus(tmp_path)

    assert (corpus.name, corpus.form, corpus.labels) == ("dailydialog", "dailydialog", DAILYDIALOG)
    assert [u.label for u in corpus.dialogues["train"][0].utterances] == list(DAILYDIALOG)  # digits count from 0
    assert corpus.differences == (
        "dailydialog names no speaker: those of a dialogue are two strangers, of whom nothing is known elsewhere.",
        "train: 1 dialogues, published 11,118.",
        "train: 7 labelled utterances, published 87,170.",
        "dev: 1 dialogues, published 1,000.",
        "dev: 7 labelled utterances, published 8,069.",
        "test: 1 dialogues, published 1,000.",
        "test: 7 labelled utterances, published 7,740.",
    )


def test_a_release_that_is_still_packed_says_so(tmp_path):
    for name in ("train.zip", "validation.zip", "test.zip"):
        (tmp_path / name).write_bytes(b"PK")

    with pytest.raises(DataError, match=re.escape("found test.zip, train.zip, validation.zip. Unpack the .zip files")):
        read_corpus(tmp_path)


@pytest.mark.parametrize(
    ("dialogues", "emotions", "message"),
    [
        (
            "Hi . __eou__\nHi . __eou__ Bye . __eou__\n",
            "0 \n0 1 0 \n",
            "{emotions}:2: 3 emotions, but {dialogues}:2 has 2 utterances, each of which has one. Mend the line, or "
            "remove it from both files.",
        ),
        (
            "Hi . __eou__\n\nHi . __eou__\n",
            "0 \n\n0 \n",
            "{emotions}:2: 0 emotions, but {dialogues}:2 has 1 utterances, ",
        ),
        (
            "Hi . __eou__\n",
            "0 \n0 \n",
            "{emotions}:2: {dialogues} has no such line. There are 1 dialogues and 2 lines of emotions, one for each "
            "dialogue, so a line is missing here or above; fetch both files again.",
        ),
        ("Hi . __eou__\n" * 3, "0 \n0 \n", "{dialogues}:3: {emotions} has no such line. There are 3 dialogues and 2 "),
        (
            "Hi . __eou__\nHi . __eou__ Bye . __eou__\nHi . __eou__\n",
            "0 \n0 \n",
            "{emotions}:2: 1 emotions, but {dialogues}:2 has 2 utterances, each of which has one. Mend the line, or "
            "remove it from both files. There are 3 dialogues and 2 lines of emotions, one for each dialogue, so a ",
        ),
        (
            "Hi . __eou__\n",
            "7 \n",
            "{emotions}:1: unknown emotion '7'; expected one of 0 (no emotion), 1 (anger), 2 (di",
        ),
        ("Hi . __eou__\n", "-1 \n", "{emotions}:1: unknown emotion '-1'; expected one of 0 (no emotion), "),
        (" \n", "0 \n", "{dialogues}: no dialogues. Fill the file, or take another corpus."),
        ("__eou__\n", "0 \n", "{dialogues}:1: dialogue 'train-00000' has no utterances. Remove it or fill it."),
    ],
)
def test_errors_name_their_place(tmp_path, dialogues, emotions, message):
    write(tmp_path, "train", dialogues, emotions)
    paths = {
        "dialogues": tmp_path / "train" / "dialogues_train.txt",
        "emotions": tmp_path / "train" / "dialogues_emotion_train.txt",
    }

    with pytest.raises(DataError, match=f"^{re.escape(message.format(**paths))}"):
        dailydialog.read_split(tmp_path, "train")


def test_a_missing_file_is_named(tmp_path):
    write_corpus(tmp_path)
    (tmp_path / "test" / "dialogues_emotion_test.txt").unlink()

    with pytest.raises(DataError, match="dailydialog was passed over: it lacks test/dialogues_emotion_test.txt"):
        read_corpus(tmp_path)


def write_corpus(folder):
    for split in SPLITS:
        write(folder, split, "Oh . __eou__ " * 7 + "\n", "0 1 2 3 4 5 6 \n")


def write(folder, split, dialogues, emotions):
    for name, content in zip(dailydialog.name_files(split), (dialogues, emotions), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode("utf-8"))
