import re
from collections import Counter

import ftfy
import ftfy.bad_codecs  # noqa: F401 (registers sloppy-windows-1252, which leaves no byte undefined)
import pytest
from erckit.data.errors import DataError
from erckit.data.text import MOJIBAKE, WINDOWS_1252, mend, one_line, read_text
from hypothesis import assume, given
from hypothesis import strategies as st

WINDOWS_LETTERS = [c for b in range(0x20, 0x100) if (c := bytes([b]).decode("windows-1252", "ignore")) and b != 0x7F]
WORDS = st.sampled_from(["so", "you’re", "café", "“oh”", "wait…", "no—no", "señor", "naïve", "‘til", "Ångström", "é"])


@given(st.text(st.sampled_from(WINDOWS_LETTERS)))
def test_any_line_in_windows_1252_comes_back(scratch, text):
    raw = text.encode("windows-1252")
    assume(
        not is_utf8(raw) and ftfy.fix_encoding(text) == text
    )  # a line that is UTF-8 or mojibake means something else

    assert read_bytes(scratch, raw) == (text, {WINDOWS_1252: 1})


@given(st.lists(WORDS, min_size=1).map(" ".join), st.integers(1, 2))
def test_double_encoded_utf8_comes_back(scratch, text, times):
    damaged = text
    for _ in range(times):
        damaged = damaged.encode("utf-8").decode("sloppy-windows-1252")

    mended, repairs = read_bytes(scratch, damaged.encode("utf-8"))

    assert mended == text
    assert repairs == ({} if damaged == text else {MOJIBAKE: 1})


@given(st.lists(WORDS).map(" ".join))
def test_right_text_stays_as_it_is(scratch, text):
    assert read_bytes(scratch, text.encode("utf-8")) == (text, {})


@pytest.mark.parametrize(
    ("damaged", "mended"),
    [
        ("youâ€™re", "you’re"),
        ("I\x92m here", "I’m here"),
        ("wait\x85 what?", "wait… what?"),  # str.splitlines would have cut the line here
        ("cafÃ©", "café"),
    ],
)
def test_known_damage_is_mended(scratch, damaged, mended):
    assert read_bytes(scratch, damaged.encode("utf-8")) == (mended, {MOJIBAKE: 1})


def test_only_the_damaged_lines_are_read_as_windows_1252(scratch):
    raw = "it’s\r".encode() + b"it\x92s\r\n" + "Привет\n".encode() + b"caf\xe9 \x9d"  # 0x9D is undefined

    assert read_bytes(scratch, raw) == ("it’s\rit’s\r\nПривет\ncafé \ufffd", {WINDOWS_1252: 2})


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", "\ufeff".encode().decode("windows-1252").encode()])
def test_a_byte_order_mark_is_dropped(scratch, mark):
    text, _ = read_bytes(scratch, mark + "it’s".encode())

    assert text == "it’s"


def test_a_byte_order_mark_is_dropped_from_a_damaged_line(scratch):
    assert read_bytes(scratch, b"\xef\xbb\xbfcaf\xe9") == ("café", {WINDOWS_1252: 1})


def test_line_ends_survive_reading_and_never_an_utterance(scratch):
    text, repairs = read_bytes(scratch, b'a,"b\r\nc"\r\nd\re\n')

    assert (text, repairs) == ('a,"b\r\nc"\r\nd\re\n', {})
    assert one_line(" b\r\n c\x85d\u2028e\tf ") == "b c d e f"


def test_half_an_emoji_becomes_the_replacement_character():
    repairs: Counter[str] = Counter()

    assert mend("oh \ud83d", repairs) == "oh \ufffd"
    assert repairs == {MOJIBAKE: 1}


def test_a_binary_file_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "talk.txt"
    path.write_bytes(b"one\ntwo\x00\n")

    message = "talk.txt:2: found a NUL byte, expected text (binary file, or UTF-16?). Save it as UTF-8."
    with pytest.raises(DataError, match=re.escape(message)):
        read_text(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"talk\.txt: no such file"):
        read_text(tmp_path / "talk.txt")


def read_bytes(folder, raw):
    path = folder / "text.txt"
    path.write_bytes(raw)
    return read_text(path)


def is_utf8(raw):
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
