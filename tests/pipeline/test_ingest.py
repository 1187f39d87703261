"""Ingest: what makes it stale."""

import shutil

from erckit.data.speakers import ALIAS_TABLES
from erckit.pipeline.run import Fresh, Stale, state
from erckit.pipeline.stages import ingest


def test_a_change_of_a_shipped_alias_table_makes_ingest_stale(begin, tmp_path, monkeypatch):
    config, run = begin()
    tables = tmp_path / "aliases"
    shutil.copytree(ALIAS_TABLES, tables)
    monkeypatch.setattr(ingest, "ALIAS_TABLES", tables)
    assert state("ingest", config, run) == Fresh()

    with (tables / "meld.yaml").open("a") as file:
        file.write("Ross: [Dr. Geller]\n")
    assert state("ingest", config, run) == Stale("its wording, model or method changed")


def test_the_shipped_tables_do_not_matter_to_a_user_s_own(begin, tmp_path):
    config, _ = begin(f"data.aliases={tmp_path}/own.yaml")
    assert ingest.fingerprint(config) == ""


def test_all_files_that_are_read_decide_and_no_others(begin, tmp_path):
    paths = [
        f"Session{n}/dialog/{part}/Ses0{n}F_impro01.txt" for n in (1, 2) for part in ("EmoEvaluation", "transcriptions")
    ]
    paths += ["labels.json", "train/dialogues_emotion_train.txt", "train/dialogues_train.txt", "train_sent_emo.csv"]
    others = [
        "Session1/dialog/transcriptions/._Ses01F_impro01.txt",
        "Session1/dialog/wav/Ses01F_impro01.wav",
        "notes.txt",
    ]
    for path in [*paths, *others]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("one")
    config, _ = begin(f"data.path={tmp_path}")

    assert [path.relative_to(tmp_path).as_posix() for path in ingest.corpus_files(config)] == paths
