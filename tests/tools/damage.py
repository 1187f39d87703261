"""What happens to files: truncated, bits flipped, columns exchanged, values of a wrong type, and more."""

import csv
import io
import json
import re
from collections.abc import Callable
from random import Random

BYTES = [
    b"\0", b"\xff", b"\xed\xa0\x80", b"\xc2\x85", b"\xe2\x80\xa8", b'"', b"\\", b"\r", b"\n", b"\n\n", b"\t", b",",
    b"]", b"{",
]  # fmt: skip
CELLS = [
    "", "  ", '"', "nan", "-1", "1e5", "9" * 5000, "９", "²", "[[]]", "{[]: 1}", "[1, None]", "['a', ['b']]", "(" * 300,
    "'\\d'", "['\\ud800']", "['Ada'", "[]", "\x85", "\u2028", "00:99", "9" * 5000 + ":00:00,1", "mad and sad", "?",
]  # fmt: skip
VALUES = [
    "null", "true", "3", "-1.5", "NaN", "1" * 5000, '""', '" "', '"x"', "[]", "[[]]", "[null]", '["a", 1]', "{}",
    '{"a": 1}', '"\\ud800"', '"\\u0000"', '"\\u0092"', "[" * 20_000 + "]" * 20_000,
]  # fmt: skip


def damage(random: Random, data: bytes, form: str) -> bytes | None:
    """Return the bytes damaged in one to three ways, None for a file that is gone."""
    if random.random() < 0.01:
        return None
    for _ in range(random.choice([1, 1, 1, 1, 2, 3])):
        data = random.choice(WAYS[form])(random, data)
    return data


def _truncate(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _flip(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 8]) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut_out(random: Random, data: bytes) -> bytes:
    start = random.randrange(len(data) + 1)
    return data[:start] + data[start + random.choice([1, 2, 10, 100]) :]


def _put_in(random: Random, data: bytes) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.choice(BYTES) * random.choice([1, 1, 3]) + data[place:]


def _exchange_byte(random: Random, data: bytes) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + random.choice(BYTES) + data[place + 1 :]


def _drop_lines(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    start = random.randrange(len(lines))
    del lines[start : start + random.choice([1, 1, 4])]
    return b"\n".join(lines)


def _repeat_line(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    lines.insert(random.randrange(len(lines)), random.choice(lines))
    return b"\n".join(lines)


def _swap_lines(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    one, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def _recode(random: Random, data: bytes) -> bytes:
    text = data.decode("utf-8", errors="replace")
    return random.choice(
        [
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-8-sig"),
            lambda: text.encode("windows-1252", errors="replace"),
            lambda: text.encode().decode("latin-1").encode(),
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b"\n", b"\r"),
            lambda: b"",
        ]
    )()


def _swap_columns(random: Random, data: bytes) -> bytes:
    """Exchange two columns of a table, in all rows with the header or without it, or in some rows."""
    rows = _parse(data)
    width = min(map(len, rows), default=0)
    if width < 2:
        return data
    one, other = random.sample(range(width), 2)
    share = random.choice([1, 1, 0.2])
    for row in rows[random.choice([0, 1]) :]:
        if random.random() < share:
            row[one], row[other] = row[other], row[one]
    return _unparse(rows)


def _swap_fields(random: Random, data: bytes) -> bytes:
    """The same where tabs stand between them."""
    lines = [line.split(b"\t") for line in data.split(b"\n")]
    one, other = random.sample(range(3), 2)
    share = random.choice([1, 0.2])
    for fields in lines:
        if len(fields) == 3 and random.random() < share:
            fields[one], fields[other] = fields[other], fields[one]
    return b"\n".join(map(b"\t".join, lines))


def _change_cell(random: Random, data: bytes) -> bytes:
    rows = _parse(data)
    row = random.choice(rows) if rows else []
    if row:
        row[random.randrange(len(row))] = random.choice(CELLS)
    return _unparse(rows)


def _change_field(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    fields = lines[place].split(b"\t")
    fields[random.randrange(len(fields))] = random.choice(CELLS).encode()
    lines[place] = b"\t".join(fields)
    return b"\n".join(lines)


def _change_value(random: Random, data: bytes) -> bytes:
    """Exchange a value of a JSON object, a list's item, or a key."""
    text = data.decode("utf-8", errors="replace")
    places = [match.end() for match in re.finditer(r"[:\[,]\s*|^", text)]
    place = random.choice(places)
    try:
        _, end = json.JSONDecoder().raw_decode(text, place)
    except (ValueError, RecursionError):
        return data
    return (text[:place] + random.choice(VALUES) + text[end:]).encode("utf-8", errors="replace")


def _parse(data: bytes) -> list[list[str]]:
    try:
        return [row for row in csv.reader(io.StringIO(data.decode("utf-8", errors="replace"))) if row]
    except csv.Error:
        return []


def _unparse(rows: list[list[str]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode("utf-8", errors="replace")


Way = Callable[[Random, bytes], bytes]
_ANY: list[Way] = [
    _truncate, _flip, _flip, _cut_out, _put_in, _exchange_byte, _drop_lines, _repeat_line, _swap_lines, _recode,
]  # fmt: skip
WAYS: dict[str, list[Way]] = {
    "emorynlp-json": [*_ANY, _change_value, _change_value, _change_value],
    "emorynlp-text": [*_ANY, _swap_fields, _change_field, _change_field],
    "emorynlp-csv": [*_ANY, _swap_columns, _change_cell, _change_cell],
    "meld-csv": [*_ANY, _swap_columns, _change_cell, _change_cell],
    "erckit-jsonl": [*_ANY, _change_value, _change_value, _change_value],
    "dailydialog": [*_ANY, _change_field],
    "iemocap-6": [*_ANY, _change_field, _change_field],
}
