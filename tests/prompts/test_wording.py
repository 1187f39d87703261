"""The wording of prompts against `str.format`, and what is said about a folder that is no wording."""

import re
from importlib.resources import files
from pathlib import Path
from string import Formatter

import pytest
from erckit.data.errors import DataError
from erckit.prompts.wording import FIELDS, Piece, Wording, read_wording
from hypothesis import given
from hypothesis import strategies as st

SHIPPED = sorted(folder.name for folder in (files("erckit.prompts") / "templates").iterdir())
PLACES = [(wording, template) for wording in SHIPPED for template in FIELDS]

texts = st.text() | st.sampled_from(["{label}", "}{", "{{}}", " both sides ", "[SEP]", "<|im_end|>", "a\nb"])


@pytest.fixture
def own_folder(tmp_path) -> Path:
    """A folder with a copy of a shipped wording."""
    read_wording("brief").write(tmp_path / "own")
    return tmp_path / "own"


def test_there_are_wordings_to_test():
    assert {"brief", "instruct"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_wording_reads_whole_and_writes_an_equal_copy(name, tmp_path):
    wording = read_wording(name)
    wording.write(tmp_path)

    assert set(wording.templates) == set(FIELDS)
    assert read_wording(str(tmp_path)) == wording
    assert read_wording(str(tmp_path)).hash == wording.hash


@given(st.sampled_from(PLACES), st.data())
def test_pieces_join_to_the_template_filled_by_str_format(place, data):
    wording, template = read_wording(place[0]), place[1]
    fields = {name: data.draw(texts, label=name) for name in sorted(FIELDS[template])}

    expected = wording.templates[template].format(**fields)  # str.format leaves braces in values alone
    assert "".join(piece.text for piece in wording.pieces(template, **fields)) == expected
    assert wording.text(template, **fields) == expected


@given(st.sampled_from(PLACES), st.data())
def test_a_field_is_a_piece_of_its_own_with_at_most_its_blank(place, data):
    wording, template = read_wording(place[0]), place[1]
    fields = {name: data.draw(texts, label=name) for name in sorted(FIELDS[template])}
    other = {name: "other" for name in fields}

    # Whatever the fields hold, the same pieces are theirs and all others stay as they are.
    filled, marked = wording.pieces(template, **fields), wording.pieces(template, **other)
    assert len(filled) == len(marked)
    order = iter(name for _, name, _, _ in Formatter().parse(wording.templates[template]) if name)
    for piece, mark in zip(filled, marked, strict=True):
        if mark.text.lstrip(" ") == "other":
            assert piece == Piece(mark.text.replace("other", fields[next(order)]))
        else:
            assert piece == mark
    assert next(order, None) is None


def test_a_blank_before_a_field_goes_with_the_field():
    wording = Wording({"utterance": "\n{speaker}: {text} <"})

    assert wording.pieces("utterance", speaker="Ada", text="Hi") == (
        Piece("\n"),
        Piece("Ada"),
        Piece(":"),
        Piece(" Hi"),
        Piece(" <"),
    )


def test_only_the_last_line_break_of_a_file_is_dropped(own_folder):
    (own_folder / "question.txt").write_text("\n{speaker}?\n\n", encoding="utf-8")

    assert read_wording(str(own_folder)).text("question", speaker="Ada", text="", labels="") == "\nAda?\n"


@pytest.mark.parametrize("template", FIELDS)
def test_the_hash_changes_with_every_file(own_folder, template):
    before = read_wording(str(own_folder)).hash
    file = own_folder / f"{template}.txt"
    file.write_text(file.read_text(encoding="utf-8").removesuffix("\n") + "!\n", encoding="utf-8")

    assert read_wording(str(own_folder)).hash != before


def test_the_hash_changes_where_text_moves_from_one_file_to_the_next():
    wordings = [{"answer": "ab", "fact": "c"}, {"answer": "a", "fact": "bc"}, {"answer": "c", "fact": "ab"}]

    assert len({Wording(templates).hash for templates in wordings}) == 3


def spoil(file: Path, text: str | None) -> None:
    if text is None:
        file.unlink()
    else:
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "fact.txt",
            None,
            "fact.txt: missing. A wording has the files instruction.txt, introduction.txt, unknown.txt, utterance.txt, "
            "fact.txt, recent.txt, recent_item.txt, question.txt, answer.txt.",
        ),
        ("utterance.txt", "{speaker}: {words}\n", "utterance.txt: unknown field 'words'; it may use speaker, text."),
        ("answer.txt", "{}\n", "answer.txt: unknown field ''; it may use label."),
        ("answer.txt", "{label.upper}\n", "answer.txt: unknown field 'label.upper'; it may use label."),
        (
            "unknown.txt",
            "{speaker} :-}\n",
            "unknown.txt: Single '}' encountered in format string. Write a brace that is text as '{{' or '}}'.",
        ),
        (
            "unknown.txt",
            "{speaker\n",
            "unknown.txt: expected '}' before end of string. Write a brace that is text as '{{' or '}}'.",
        ),
    ],
)
def test_a_broken_file_is_named_with_the_remedy(own_folder, name, text, message):
    spoil(own_folder / name, text)

    with pytest.raises(DataError, match=f"^{re.escape(str(own_folder) + '/' + message)}$"):
        read_wording(str(own_folder))


@pytest.mark.parametrize("text", ["{label!r}\n", "{label:>9}\n"])
def test_what_would_be_ignored_is_refused(own_folder, text):
    spoil(own_folder / "answer.txt", text)

    with pytest.raises(DataError, match=re.escape("answer.txt: the field 'label' has a format; write {label} alone.")):
        read_wording(str(own_folder))


@pytest.mark.parametrize("name", ["brif", "no/such/folder"])
def test_an_unknown_name_is_told_the_known_ones(name, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    message = f"no wording {name!r}; expected one of {', '.join(SHIPPED)}, or a folder of template files."

    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        read_wording(name)


def test_a_file_that_is_no_utf_8_is_named(own_folder):
    (own_folder / "fact.txt").write_bytes(b"\xff{fact}")
    with pytest.raises(DataError, match=r"fact\.txt: expected UTF-8, found other bytes \(.*\)\. Mend the file\."):
        read_wording(str(own_folder))


def test_braces_that_are_text_may_be_written(own_folder):
    spoil(own_folder / "fact.txt", " {{{fact}}}\n")

    assert read_wording(str(own_folder)).text("fact", speaker="Ada", fact="{x}") == " {{x}}"
