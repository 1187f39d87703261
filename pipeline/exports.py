"""What other trainers read: prompts with their answers as JSON Lines and as Parquet, and the card of their folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .. import __version__
from ..data.files import format_json_line, replace_atomically, write_text
from ..data.labels import LabelSet
from ..prompts.tree import PromptTree, gold_emotions, unroll
from ..prompts.wording import Wording
from .backbone import name_for_readers
from .config import Config
from .yaml_text import dump_mapping

FORMS: dict[str, Callable[[str, str, Wording], dict[str, Any]]] = {
    "prompt_completion": lambda prompt, label, wording: {
        "prompt": prompt,
        "completion": wording.text("answer", label=label),
    },
    "messages": lambda prompt, label, wording: {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": label}]
    },
}
"""The forms by name, each with what a row of it is made of: a prompt, its label, and the wording."""
SUFFIXES = ("jsonl", "parquet")
CARD = "export/README.md"
TEMPLATE = "dataset_card.md.jinja"
ROWS = 2000  # of a Parquet row group: what is held in memory


def list_exports(split: str) -> list[str]:
    """The files of a split, by their paths in the folder of the stage."""
    return [f"export/{split}.{form}.{suffix}" for form in FORMS for suffix in SUFFIXES]


def unroll_rows(trees: Sequence[PromptTree], wording: Wording, *, told_gold: bool) -> Iterator[tuple[str, str]]:
    """Yield every labelled prompt of a dialogue as text, with its label.

    Recent emotions are told where they are gold, in train. For dev and test they are not known before prediction, and
    are left out. So are control tokens: other trainers add those of a model themselves.
    """
    gold = gold_emotions(trees) if told_gold else {}
    for tree in trees:
        for branch in tree.branches:
            if branch.label is not None:
                prompt = unroll(tree, branch, gold.get(tree.dialogue, {}), wording)
                yield "".join(piece.text for piece in prompt if not piece.control).lstrip("\n"), branch.label


@contextmanager
def open_exports(folder: Path, split: str, wording: Wording) -> Iterator[Callable[[str, str], None]]:
    """Yield a function that takes a prompt and its label; the files of all forms are there when the block ends well."""
    with ExitStack() as stack:
        writers = {
            form: stack.enter_context(_open_form(folder / f"export/{split}.{form}", _schema(form))) for form in FORMS
        }

        def write(prompt: str, label: str) -> None:
            for form, write_row in writers.items():
                write_row(FORMS[form](prompt, label, wording))

        yield write


@contextmanager
def _open_form(path: Path, schema: Any) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that writes a row, streaming, into the two files of this path and the `SUFFIXES`."""
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    rows: list[dict[str, Any]] = []
    lines_path, table_path = (path.with_name(f"{path.name}.{suffix}") for suffix in SUFFIXES)
    with (
        replace_atomically(lines_path) as temporary_lines,
        replace_atomically(table_path) as temporary_table,
        temporary_lines.open("w", encoding="utf-8") as lines,
        temporary_table.open("wb") as binary,
        ParquetWriter(binary, schema) as table,
    ):

        def write(row: dict[str, Any]) -> None:
            lines.write(format_json_line(row))
            rows.append(row)
            if len(rows) == ROWS:
                write_group()

        def write_group() -> None:
            table.write_table(Table.from_pylist(rows, schema))
            rows.clear()

        yield write
        if rows:
            write_group()


def _schema(form: str) -> Any:
    import pyarrow

    text = pyarrow.string()
    turns = pyarrow.list_(pyarrow.struct({"role": text, "content": text}))
    columns = {"prompt_completion": {"prompt": text, "completion": text}, "messages": {"messages": turns}}
    return pyarrow.schema(columns[form])


def write_card(
    path: Path,
    config: Config,
    corpus: str,
    labels: LabelSet,
    wording: Wording,
    notes: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write the card of the folder as the Hugging Face hub has it; `notes` has "rows" and "longest" of each split."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template(TEMPLATE).render(
        version=__version__,
        corpus=corpus,
        labels=list(labels),
        model=name_for_readers(config.model),
        template=Path(config.prompts.template).name,
        wording=wording.hash[:12],
        prompts=config.prompts,
        settings=dump_mapping(config.prompts.model_dump(mode="json", exclude={"template"})).rstrip(),
        forms=list(FORMS),
        splits={split: noted for split, noted in notes.items() if noted["rows"]},
    )
    write_text(path, text)
