"""The wording of prompts: a folder of text files, and the one function that fills them in."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from string import Formatter

from ..data.errors import DataError
from ..data.files import replace_atomically

FIELDS = {
    "instruction": {"labels"},
    "introduction": {"speaker", "biography"},
    "unknown": {"speaker"},
    "utterance": {"speaker", "text"},
    "fact": {"speaker", "fact"},
    "recent": {"speaker", "recent"},
    "recent_item": {"label", "turns"},
    "question": {"speaker", "text", "labels"},
    "answer": {"label"},
}
"""The template files and the fields that each may use."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a prompt that is tokenised by itself; only `control` pieces may hold control tokens."""

    text: str
    control: bool = False


@dataclass(frozen=True)
class Wording:
    """The templates of one wording by name, each with the text of its file less the last line break."""

    templates: Mapping[str, str]

    @cached_property
    def hash(self) -> str:
        """SHA-256 over names and texts, in hex: what a prompt, a prediction and an adapter say they were made with."""
        digest = hashlib.sha256()
        for name in sorted(self.templates):
            digest.update(f"{name}\0{self.templates[name]}\0".encode())
        return digest.hexdigest()

    def pieces(self, template: str, **fields: str) -> tuple[Piece, ...]:
        """Fill in a template. Every field is a piece of its own, so that no text merges with the wording around it.

        A blank right before a field belongs to the field's piece: most tokenizers write a word with its blank.
        """
        pieces: list[Piece] = []
        for literal, field, _, _ in _parse(self.templates[template]):
            blank = field is not None and literal.endswith(" ")
            if literal[: -1 if blank else None]:
                pieces.append(Piece(literal[: -1 if blank else None]))
            if field is not None:
                pieces.append(Piece(" " * blank + fields[field]))
        return tuple(pieces)

    def text(self, template: str, **fields: str) -> str:
        return "".join(piece.text for piece in self.pieces(template, **fields))

    def write(self, folder: Path) -> None:
        for name, text in self.templates.items():
            with replace_atomically(folder / f"{name}.txt") as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")


def read_wording(name: str) -> Wording:
    """Read a shipped wording by name, or the folder that `name` is a path of.

    Raises DataError for an unknown name, a missing file, or a field that a template may not use or that has a format.
    """
    shipped = files("erckit.prompts") / "templates"
    folder = shipped / name if "/" not in name and (shipped / name).is_dir() else Path(name)
    if not folder.is_dir():
        names = sorted(entry.name for entry in shipped.iterdir() if entry.is_dir())
        raise DataError(f"no wording {name!r}; expected one of {', '.join(names)}, or a folder of template files.")
    templates = {}
    for template, allowed in FIELDS.items():
        file = folder / f"{template}.txt"
        if not file.is_file():
            raise DataError(f"{file}: missing. A wording has the files {', '.join(f'{name}.txt' for name in FIELDS)}.")
        try:
            templates[template] = file.read_text(encoding="utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{file}: expected UTF-8, found other bytes ({error.reason}). Mend the file.") from error
        _check_fields(templates[template], allowed, file)
    return Wording(templates)


def _check_fields(template: str, allowed: set[str], file: object) -> None:
    try:
        fields = [(field, form or conversion) for _, field, form, conversion in _parse(template) if field is not None]
    except ValueError as error:
        raise DataError(f"{file}: {error}. Write a brace that is text as '{{{{' or '}}}}'.") from error
    for field, form in fields:
        if field not in allowed:
            raise DataError(f"{file}: unknown field {field!r}; it may use {', '.join(sorted(allowed))}.")
        if form:
            raise DataError(f"{file}: the field {field!r} has a format; write {{{field}}} alone.")


def _parse(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    return list(Formatter().parse(template))
