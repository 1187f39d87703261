"""The one way in: a folder becomes a corpus, whatever the form of its files."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from .dialogue import SPLITS, Corpus, Dialogue
from .errors import DataError
from .forms import FORMS, find_files


def read_corpus(path: Path, form: str = "auto") -> Corpus:
    """Read the corpus in a folder.

    "auto" finds the form by the names and the beginnings of the files; of several complete forms the one with the most
    utterances is taken (the first of FORMS, if equal), and `differences` names the others, damaged ones with what is
    wrong. Any other `form` reads that one only. Raises DataError for whatever is missing or wrong in the folder or its
    files, where no form can be read.
    """
    path = Path(path)
    if form != "auto" and form not in FORMS:
        near = get_close_matches(form, ["auto", *FORMS], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"unknown form {form!r}; expected one of auto, {', '.join(FORMS)}.{hint}")
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give the folder that holds the three files of a corpus.")
    complete, passed_over = _recognise(path) if form == "auto" else _require(path, form)
    corpora, errors = _read_forms(path, complete)
    if not corpora:
        raise next(iter(errors.values()))
    damaged = [f"{name} was passed over: {error}" for name, error in errors.items()]
    chosen = max(corpora, key=_count_utterances)
    others = [_describe_other(other, chosen) for other in corpora if other is not chosen]
    return replace(chosen, differences=(*chosen.differences, *others, *damaged, *passed_over))


def check_training_labels(corpus: Corpus) -> None:
    """Raise DataError if a label of the set has no training example."""
    seen = {u.label for dialogue in corpus.dialogues["train"] for u in dialogue.utterances}
    missing = [label for label in corpus.labels if label not in seen]
    if missing:
        raise DataError(
            f"{corpus.name}: train has no example of {_join(missing)}, and what is never seen is never learned. "
            "Add examples, or remove the label from the label set (labels.json)."
        )


def check_dialogue_ids(dialogues: Iterable[Dialogue]) -> None:
    """Raise DataError where two dialogues have the same id: provenance and leave-one-dialogue-out go by these."""
    sources: dict[str, str] = {}
    for dialogue in dialogues:
        if dialogue.id in sources:
            raise DataError(
                f"{dialogue.source}: dialogue {dialogue.id!r} was already read from {sources[dialogue.id]}. "
                "Ids are unique in a corpus; remove one of the two, or give it an id of its own."
            )
        sources[dialogue.id] = dialogue.source


def _recognise(path: Path) -> tuple[list[str], list[str]]:
    """Return the forms that are complete in the folder, and a sentence for each that is there only in part."""
    complete: list[str] = []
    passed_over: list[str] = []
    for name, form in FORMS.items():
        present = {pattern: files[0] for pattern in form.files if (files := find_files(path, pattern))}
        absent = [pattern for pattern in form.files if pattern not in present]
        strange = [pattern for pattern, file in present.items() if form.files[pattern] not in _read_beginning(file)]
        if strange:
            passed_over.append(
                f"{name} was passed over: no {form.files[strange[0]]!r} at the beginning of "
                f"{present[strange[0]].relative_to(path)}."
            )
        elif present and absent:
            passed_over.append(f"{name} was passed over: it lacks {', '.join(absent)}.")
        elif present:
            complete.append(name)
    if not complete:
        expected = "; ".join(f"{name}: {', '.join(form.files)}" for name, form in FORMS.items())
        reasons = "".join(f" {sentence}" for sentence in passed_over)
        reasons += " Unpack the .zip files first." if find_files(path, "*.zip") else ""
        reasons += f" Did you mean {inner}?" if (inner := _find_inner(path)) else ""
        raise DataError(
            f"{path}: no corpus recognised; found {_list_files(path)}.{reasons} "
            f"Expected all files of one form: {expected}."
        )
    return complete, passed_over


def _find_inner(path: Path) -> Path | None:
    """Return a folder in this one that is complete in some form, as archives have it when they are unpacked."""
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and any(all(find_files(entry, file) for file in form.files) for form in FORMS.values()):
            return entry
    return None


def _require(path: Path, name: str) -> tuple[list[str], list[str]]:
    absent = [str(path / pattern) for pattern in FORMS[name].files if not find_files(path, pattern)]
    if absent:
        raise DataError(
            f"{path}: {name} needs {', '.join(FORMS[name].files)}; {', '.join(absent)} is missing; "
            f"found {_list_files(path)}. Add it, or choose another form."
        )
    return [name], []


def _read_forms(path: Path, names: Iterable[str]) -> tuple[list[Corpus], dict[str, DataError]]:
    """Read every form of `names`. Returns the corpora that can be used, and by form what is wrong with the others."""
    corpora: list[Corpus] = []
    errors: dict[str, DataError] = {}
    for name in names:
        try:
            corpora.append(_read_form(path, name))
        except DataError as error:
            errors[name] = error
    return corpora, errors


def _read_form(path: Path, name: str) -> Corpus:
    form = FORMS[name]
    labels = form.find_labels(path)
    dialogues: dict[str, tuple[Dialogue, ...]] = {}
    repairs: Counter[str] = Counter()
    for split in SPLITS:
        found, mended = form.read(path, split, labels)
        dialogues[split] = tuple(found)
        repairs += mended
    differences = [form.note] if form.note else []
    differences += _compare_counts(dialogues, form.published)
    corpus = Corpus(form.corpus or path.resolve().name, name, labels, dialogues, dict(repairs), tuple(differences))
    check_dialogue_ids(dialogue for split in corpus.dialogues.values() for dialogue in split)
    check_training_labels(corpus)
    return corpus


def _compare_counts(
    dialogues: Mapping[str, tuple[Dialogue, ...]], published: Mapping[str, tuple[tuple[int, ...], int]]
) -> Iterable[str]:
    for splits, (numbers, utterances) in published.items():
        counted = [dialogue for split in splits.split("+") for dialogue in dialogues[split]]
        if numbers and len(counted) not in numbers:
            yield f"{splits}: {len(counted):,} dialogues, published {' or '.join(f'{n:,}' for n in numbers)}."
        found = sum(utterance.label is not None for dialogue in counted for utterance in dialogue.utterances)
        if found != utterances:
            yield f"{splits}: {found:,} labelled utterances, published {utterances:,}."


def _describe_other(other: Corpus, chosen: Corpus) -> str:
    return (
        f"{other.form} is also complete here, with {_count_utterances(other):,} utterances; "
        f"{chosen.form} was read, with {_count_utterances(chosen):,}."
    )


def _count_utterances(corpus: Corpus) -> int:
    return sum(len(dialogue.utterances) for dialogues in corpus.dialogues.values() for dialogue in dialogues)


def _read_beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(4096).decode("utf-8", errors="replace")


def _list_files(path: Path, limit: int = 12) -> str:
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in path.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more if names else "no files"


def _join(labels: list[str]) -> str:
    return " or ".join(repr(label) for label in labels)
