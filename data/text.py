"""Text as other people's programs left it: bytes of any make become clean strings, and every repair is counted."""

import codecs
import re
from collections import Counter
from pathlib import Path

import ftfy

from .errors import DataError

WINDOWS_1252 = "lines read as Windows-1252"
MOJIBAKE = "lines with mojibake mended"
SURROGATES = re.compile("[\ud800-\udfff]")


def read_text(path: Path) -> tuple[str, Counter[str]]:
    """Read a text file and mend its encoding, line by line.

    A line that is not UTF-8 is read as Windows-1252 (U+FFFD for the bytes that it leaves undefined); then mojibake and
    C1 control characters are mended. A byte order mark is dropped. Line ends stay as they are: the csv module needs
    them. Returns the text and the number of lines repaired, by kind. Raises DataError if the file is not text.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Check the path.")
    repairs: Counter[str] = Counter()
    # As bytes: str.splitlines would also split at U+0085, which is a damaged "…".
    lines = enumerate(path.read_bytes().splitlines(keepends=True), start=1)
    return "".join(mend_line(line, f"{path}:{number}", repairs) for number, line in lines), repairs


def mend_line(line: bytes, source: str, repairs: Counter[str]) -> str:
    """Decode and mend one line of a text file, as `read_text` does with each; a byte order mark before it goes."""
    if b"\0" in line:
        raise DataError(f"{source}: found a NUL byte, expected text (binary file, or UTF-16?). Save it as UTF-8.")
    return mend(_decode(line.removeprefix(codecs.BOM_UTF8), repairs), repairs).removeprefix("\ufeff")


def mend(text: str, repairs: Counter[str]) -> str:
    """Undo mojibake and C1 control characters in one line, counting it in `repairs`; right text stays as it is.

    Half a character becomes U+FFFD (`replace_halves`).
    """
    mended = text if text.isascii() else replace_halves(ftfy.fix_encoding(text))
    if mended != text:
        repairs[MOJIBAKE] += 1
    return mended


def replace_halves(text: str) -> str:
    """Put U+FFFD for half an emoji: a lone surrogate, which JSON escapes can hold, and no file and no tokenizer can."""
    return SURROGATES.sub("\ufffd", text)


def one_line(text: str) -> str:
    """Strip the text and make every run of blanks and line breaks in it one space."""
    return " ".join(text.split())


def _decode(line: bytes, repairs: Counter[str]) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        repairs[WINDOWS_1252] += 1
        return line.decode("windows-1252", errors="replace")
