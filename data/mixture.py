"""Training on several corpora: the train parts of others are added to train, their emotions put into its label set."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import punctuation

import yaml

from .dialogue import Corpus, Dialogue, Utterance
from .errors import DataError
from .labels import LabelSet
from .speakers import QUOTES, identify_speakers
from .text import read_text

FEELINGS = Path(__file__).parent / "feelings.yaml"
"""The shipped table of emotions that corpora name differently."""
LEAST_WORDS = 8
"""Shorter utterances stand in many dialogues by chance."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """How many utterances of a split, of at least `LEAST_WORDS` words, stand word for word in train."""

    split: str
    repeated: int
    compared: int

    def __str__(self) -> str:
        share = 100 * self.repeated / max(self.compared, 1)
        return (
            f"{self.split}: {self.repeated:,} of {self.compared:,} utterances of {LEAST_WORDS} words and more "
            f"({share:.1f} %) stand word for word in train."
        )


def mix_corpora(
    main: Corpus,
    others: Sequence[tuple[Corpus, Mapping[str, str]]],
    feelings: Sequence[Sequence[str]],
    *,
    drop_overlap: bool,
) -> Corpus:
    """Return the main corpus with the train dialogues of others in train; its dev and test stay as they are.

    Dev and test of the others are not used, so that they can still be answered honestly.

    `others` come each with its table of aliases, `feelings` as `read_feelings` returns them. An emotion that the main
    label set has no word for leaves its utterance unlabelled. With `drop_overlap` a dialogue is left out of which any
    utterance stands in dev or test of the main corpus. Every departure is told in `differences`.

    Raises DataError where two corpora have the same name, with which the ids of those added begin.
    """
    names = Counter([main.name, *(other.name for other, _ in others)])
    if names.total() > len(names):
        raise DataError(
            f"corpus {names.most_common(1)[0][0]} is mixed with itself. Name other corpora in data.also; a corpus of "
            "your own has the name of its folder, so rename one of two folders of the same name."
        )
    shown = {phrase for split in ("dev", "test") for phrase in _find_phrases(main.dialogues[split])}
    added: list[Dialogue] = []
    notes: list[str] = []
    for other, aliases in others:
        words = translate_labels(other.labels, main.labels, feelings)
        named, _ = identify_speakers(other, aliases)
        dialogues = named.dialogues["train"]
        kept = [d for d in dialogues if not (drop_overlap and not shown.isdisjoint(_find_phrases([d])))]
        added += (_adopt(dialogue, other.name, words) for dialogue in kept)
        notes.append(_describe(other, main, words, len(dialogues), len(kept)))
    train = (*main.dialogues["train"], *added)
    return replace(main, dialogues={**main.dialogues, "train": train}, differences=(*main.differences, *notes))


def measure_overlap(corpus: Corpus, others: Sequence[Corpus] = ()) -> list[Overlap]:
    """Return how much of dev and of test, its own and those of others, stands in the train of a corpus.

    Quotes, case and punctuation are made alike.
    """
    known = set(_find_phrases(corpus.dialogues["train"]))
    asked = {split: corpus.dialogues[split] for split in ("dev", "test")}
    asked |= {f"{other.name} {split}": other.dialogues[split] for other in others for split in ("dev", "test")}
    found = []
    for name, dialogues in asked.items():
        phrases = list(_find_phrases(dialogues))
        found.append(Overlap(name, sum(phrase in known for phrase in phrases), len(phrases)))
    return found


def translate_labels(labels: LabelSet, to: LabelSet, feelings: Sequence[Sequence[str]]) -> dict[str, str | None]:
    """Return for every label the one of another set that means the same, or None."""
    groups = {word: group for group in feelings for word in group}
    return {
        label: label if label in to else next((word for word in groups.get(label, ()) if word in to), None)
        for label in labels
    }


def read_feelings(path: Path = FEELINGS) -> list[list[str]]:
    """Read a YAML table `emotion: [other words for it, ...]`. Returns the words of each line, its own first.

    Raises DataError if a word stands in two lines, or if the file is no such table.
    """
    text, _ = read_text(path)
    try:
        table = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: broken YAML ({getattr(error, 'problem', error)}). Mend it.") from error
    if not isinstance(table, dict) or not all(_is_words(words) for words in table.values()):
        raise DataError(f"{path}: expected lines `emotion: [other words for it, ...]`.")
    lines = [list(dict.fromkeys(word.strip().lower() for word in (key, *words))) for key, words in table.items()]
    seen: set[str] = set()
    for word in (word for line in lines for word in line):
        if word in seen:
            raise DataError(f"{path}: {word!r} stands in two lines. Each word belongs to one; remove one of the two.")
        seen.add(word)
    return lines


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _find_phrases(dialogues: Iterable[Dialogue]) -> Iterator[str]:
    for dialogue in dialogues:
        for utterance in dialogue.utterances:
            words = utterance.text.translate(QUOTES).casefold().split()
            if len(words) >= LEAST_WORDS:
                yield " ".join(bare for word in words if (bare := word.strip(punctuation)))


def _adopt(dialogue: Dialogue, corpus: str, words: Mapping[str, str | None]) -> Dialogue:
    """Return a dialogue of another corpus as one of this: ids are unique in a corpus, labels of its set."""

    def relabel(utterance: Utterance) -> Utterance:
        return replace(utterance, label=None if utterance.label is None else words[utterance.label])

    session = None if dialogue.session is None else f"{corpus}:{dialogue.session}"
    return replace(
        dialogue, id=f"{corpus}:{dialogue.id}", session=session, utterances=tuple(map(relabel, dialogue.utterances))
    )


def _describe(other: Corpus, main: Corpus, words: Mapping[str, str | None], found: int, kept: int) -> str:
    said = [f"{label} as {word}" for label, word in words.items() if word not in (label, None)]
    lost = [label for label, word in words.items() if word is None]
    left_out = f", {found - kept:,} left out that stand in dev or test" if kept < found else ""
    meant = f"; {', '.join(said)}" if said else ""
    unlabelled = f"; {', '.join(lost)} unlabelled, as {main.name} has no word for it" if lost else ""
    return f"train: {kept:,} dialogues of {other.name} were added{left_out}{meant}{unlabelled}."
