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
