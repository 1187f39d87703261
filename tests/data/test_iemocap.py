"""IEMOCAP from a folder in the form of the release; nothing that is said here stands in the corpus."""

import re

import pytest
from erckit.data import iemocap
from erckit.data.corpus import read_corpus
from erckit.data.dialogue import SPLITS, Dialogue, Utterance
from erckit.data.errors import DataError
from erckit.data.labels import IEMOCAP, IEMOCAP_FOUR
from erckit.data.reading import NO_TEXT
from erckit.data.speakers import identify_speakers

CODES = ("hap", "sad", "neu", "ang", "exc", "fru")
OTHERS = ("sur", "fea", "dis", "oth", "xxx")


def test_turns_are_ordered_by_time_and_joined_with_their_emotions(tmp_path):
    write_release(tmp_path)
    transcription, evaluation = write_dialogue(
        tmp_path,
        "Ses05F_script01_1b",
        "Ses05F_script01_1b_F000 [006.2901-008.2357]: Is this  the line?\n"
        "Ses05F_script01_1b_M001 [100.5-101.0000]: Next.\n"
        "M: [LAUGHTER]\n"
        "Ses05F_script01_1b_M000 [007.5712-010.4750]: It is.\n"
        "Ses05F_script01_1b_MXX0 [7.1-7.2]: Huh.\n",
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        "[6.2901 - 8.2357]\tSes05F_script01_1b_F000\tneu\t[2.5000, 2.5000, 2.5000]\n"
        "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
        "[7.5712 - 10.4750]\tSes05F_script01_1b_M000\tfru\t[2.5, 2.5, 2.5]\r\n"
        "[100.5 - 101.0000]\tSes05F_script01_1b_M001\txxx\t[2.5000, 2.5000, 2.5000]\n",
    )

    found = {dialogue.id: dialogue for dialogue in iemocap.read_split(tmp_path, "test")[0]}

    assert found["Ses05F_script01_1b"] == Dialogue(
        "Ses05F_script01_1b",
        (
            Utterance("Ses05F_script01_1b_F000", ("Ses05_F",), "Is this the line?", "neutral"),
            Utterance("Ses05F_script01_1b_MXX0", ("Ses05_M",), "Huh.", None),  # nobody annotated it
            Utterance("Ses05F_script01_1b_M000", ("Ses05_M",), "It is.", "frustrated"),
            Utterance("Ses05F_script01_1b_M001", ("Ses05_M",), "Next.", None),  # annotators disagree
        ),
    )
    assert [u.source for u in found["Ses05F_script01_1b"].utterances] == [f"{transcription}:{n}" for n in (1, 5, 4, 2)]


@pytest.mark.parametrize(
    ("form", "labels", "kept"),
    [
        ("iemocap-6", IEMOCAP, ["happy", "sad", "neutral", "angry", "excited", "frustrated"]),
        ("iemocap-4", IEMOCAP_FOUR, ["happy", "sad", "neutral", "angry", "happy", None]),
    ],
)
def test_other_emotions_stay_as_context_without_a_label(tmp_path, form, labels, kept):
    write_release(tmp_path)

    corpus = read_corpus(tmp_path, form)

    assert (corpus.name, corpus.labels) == ("iemocap", labels)
    for split in SPLITS:
        for dialogue in corpus.dialogues[split]:
            assert [u.label for u in dialogue.utterances] == [*kept, *[None] * len(OTHERS)]


def test_a_release_is_recognised_as_six_emotions_and_four_are_offered(tmp_path):
    write_release(tmp_path, dialogues=2)

    corpus = read_corpus(tmp_path)

    assert corpus.form == "iemocap-6"
    assert corpus.differences[1:] == (
        "train+dev: 8 dialogues, published 120.",
        "train+dev: 48 labelled utterances, published 5,758.",
        "test: 2 dialogues, published 31.",
        "test: 12 labelled utterances, published 1,622.",
        "iemocap-4 is also complete here, with 110 utterances; iemocap-6 was read, with 110.",
    )
    assert corpus.differences[0].startswith("iemocap has no official dev: it is every 8th dialogue of sessions 1 to 4 ")


def test_session_5_is_test_and_dev_takes_whole_dialogues_of_all_other_sessions(tmp_path):
    write_release(tmp_path, dialogues=28)

    corpus = read_corpus(tmp_path)

    ids = {split: [dialogue.id for dialogue in corpus.dialogues[split]] for split in SPLITS}
    rest = [f"Ses0{session}{lead}_impro{n:02d}" for session in (1, 2, 3, 4) for lead in "FM" for n in range(14)]
    assert ids["dev"] == rest[::8]
    assert ids["train"] == [id for place, id in enumerate(rest) if place % 8]
    assert ids["test"] == [f"Ses05{lead}_impro{n:02d}" for lead in "FM" for n in range(14)]
    assert {id[:5] for id in ids["dev"]} == {"Ses01", "Ses02", "Ses03", "Ses04"}
    assert corpus == read_corpus(tmp_path)


def test_a_person_is_one_in_all_dialogues_of_their_session_and_in_no_other(tmp_path):
    write_release(tmp_path, dialogues=4)

    _, speakers = identify_speakers(read_corpus(tmp_path), {})

    # In Ses01F and Ses01M the same two people speak: the letter says who wears the markers.
    assert {speaker.name: speaker.seen for speaker in speakers} == {
        f"Ses0{session}_{gender}": session < 5 for session in (1, 2, 3, 4, 5) for gender in "FM"
    }


def test_files_beside_the_release_s_own_are_not_read(tmp_path):
    write_release(tmp_path)
    before = read_corpus(tmp_path)
    for folder in ("transcriptions", "EmoEvaluation"):
        (tmp_path / "Session1" / "dialog" / folder / "._Ses01F_impro00.txt").write_bytes(b"\0\5\x16\7")
    inner = tmp_path / "Session1" / "dialog" / "EmoEvaluation" / "Categorical"
    inner.mkdir()
    (inner / "Ses01F_impro00_e1_cat.txt").write_text("Ses01F_impro00_F000 :Neutral state; ()\n")

    assert read_corpus(tmp_path) == before


def test_a_turn_without_text_is_left_out(tmp_path):
    write_release(tmp_path)
    path = tmp_path / "Session5" / "dialog" / "transcriptions" / "Ses05F_impro00.txt"
    path.write_text(re.sub(r"(F000 \[.*\]:).*", r"\1 ", path.read_text()))

    (dialogue,), repairs = iemocap.read_split(tmp_path, "test")

    assert [u.id for u in dialogue.utterances][0] == "Ses05F_impro00_M001"
    assert repairs == {NO_TEXT: 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [("transcription", r"F000 \[.*\]", "F000 6.2")],
            "{transcription}:1: found 'Ses05F_impro00_F000 6.2: Line 0.', expected a turn such as 'Ses01F_imp",
        ),
        (
            [("evaluation", "\thap\t", "\thpa\t")],
            "{evaluation}:3: unknown emotion 'hpa'; expected one of hap, sad, neu, ang, exc, fru, sur, fea, dis, oth, "
            "xxx. Did you mean 'hap'?",
        ),
        (
            [("evaluation", "\thap\t", "\t")],
            r"{evaluation}:3: found '[0.0000 - 0.5000]\tSes05F_impro00_F000\t[2.5, 2.5, 2.5]', expected such as '[6.29",
        ),
        (
            [("transcription", "Ses05F_impro00_F000", "Ses05F_impro00_F999")],
            "{evaluation}:3: an emotion for 'Ses05F_impro00_F000', of which {transcription} has no line. Mend one of",
        ),
        (
            [("transcription", "M001", "F000"), ("evaluation", r"\[.*M001.*\n", "")],
            "{transcription}:2: a second turn 'Ses05F_impro00_F000', the first is {transcription}:1. Remove one of ",
        ),
    ],
    ids=["a turn", "an emotion", "a judgement", "an utterance", "an id twice"],
)
def test_errors_name_their_place(tmp_path, changes, message):
    write_release(tmp_path)
    paths = {
        "transcription": tmp_path / "Session5" / "dialog" / "transcriptions" / "Ses05F_impro00.txt",
        "evaluation": tmp_path / "Session5" / "dialog" / "EmoEvaluation" / "Ses05F_impro00.txt",
    }
    for name, old, new in changes:
        changed = re.sub(old, new, paths[name].read_text())
        assert changed != paths[name].read_text()
        paths[name].write_text(changed)

    with pytest.raises(DataError, match=f"^{re.escape(message.format(**paths))}"):
        read_corpus(tmp_path)


def test_missing_parts_are_named(tmp_path):
    write_release(tmp_path)
    evaluation = tmp_path / "Session2" / "dialog" / "EmoEvaluation" / "Ses02F_impro00.txt"
    evaluation.unlink()
    with pytest.raises(DataError, match=re.escape(f"{evaluation}: no such file.")):
        read_corpus(tmp_path)

    (tmp_path / "Session4" / "dialog" / "transcriptions" / "Ses04F_impro00.txt").unlink()
    message = (
        f"{tmp_path}: no file Session4/dialog/transcriptions/Ses*.txt. Sessions 1 to 4 are train and dev, session 5"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        read_corpus(tmp_path)


def write_release(folder, dialogues=1):
    """Write `dialogues` a session, each with a turn of every emotion."""
    for session in range(1, 6):
        names = [f"Ses0{session}{lead}_impro{number:02d}" for lead in "FM" for number in range((dialogues + 1) // 2)]
        for name in names[:dialogues]:
            turns, judgements = [], ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for turn, code in enumerate((*CODES, *OTHERS)):
                id = f"{name}_{'FM'[turn % 2]}{turn:03d}"
                turns.append(f"{id} [{turn:08.4f}-{turn + 0.5:08.4f}]: Line {turn}.")
                judgements.append(
                    f"[{turn:.4f} - {turn + 0.5:.4f}]\t{id}\t{code}\t[2.5, 2.5, 2.5]\nC-E1:\tNeutral;\t()\n"
                )
            write_dialogue(folder, name, "\n".join(turns) + "\n", "\n".join(judgements))


def write_dialogue(folder, name, transcription, evaluation):
    paths = []
    for part, content in (("transcriptions", transcription), ("EmoEvaluation", evaluation)):
        path = folder / f"Session{name[4]}" / "dialog" / part / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8"))
        paths.append(path)
    return paths
