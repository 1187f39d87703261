"""Global speaker identities: the same person is the same number in every dialogue, split, run and machine."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import yaml

from .dialogue import SPLITS, Corpus, Dialogue, Utterance
from .errors import DataError
from .files import read_json, write_json
from .text import read_text

ALIAS_TABLES = Path(__file__).parent / "aliases"
"""The folder of the shipped tables, one a corpus."""
QUOTES = str.maketrans(dict.fromkeys("‘’‚‛`´ʼ′", "'") | dict.fromkeys("“”„‟″", '"'))


@dataclass(frozen=True, slots=True)
class Speaker:
    """A person. `aliases` are the other names they go by, `seen` says whether they speak in train."""

    id: int
    name: str
    aliases: tuple[str, ...]
    seen: bool


@dataclass(frozen=True)
class SpeakerRegistry:
    """The speakers of a corpus by first appearance. `registry["Ada"]` is that person, in whatever spelling."""

    speakers: tuple[Speaker, ...]

    def __post_init__(self) -> None:
        owners: dict[int, str] = {}
        for speaker in self.speakers:
            if speaker.id in owners:
                raise DataError(
                    f"speakers {owners[speaker.id]!r} and {speaker.name!r} have the same id {speaker.id}. "
                    "Change the canonical name of one of them a little (in the alias table)."
                )
            owners[speaker.id] = speaker.name

    def __getitem__(self, name: str) -> Speaker:
        if name in self:
            return self._by_name[fold_name(name)]
        near = get_close_matches(fold_name(name), self._by_name, n=1)
        hint = f" Did you mean {self._by_name[near[0]].name!r}?" if near else ""
        raise DataError(f"unknown speaker {name!r} among {len(self)}; expected a canonical name.{hint}")

    def __contains__(self, name: str) -> bool:
        return fold_name(name) in self._by_name

    def __iter__(self) -> Iterator[Speaker]:
        return iter(self.speakers)

    def __len__(self) -> int:
        return len(self.speakers)

    @cached_property
    def _by_name(self) -> dict[str, Speaker]:
        return {fold_name(speaker.name): speaker for speaker in self.speakers}

    @cached_property
    def names(self) -> dict[str, str]:
        """The canonical name of each person by every folded name that they go by."""
        aliases = {fold_name(alias): speaker.name for speaker in self for alias in speaker.aliases}
        return aliases | {folded: speaker.name for folded, speaker in self._by_name.items()}

    def write(self, path: Path) -> None:
        write_json(path, [asdict(speaker) for speaker in self.speakers])

    @classmethod
    def read(cls, path: Path) -> "SpeakerRegistry":
        """Read what `write` wrote. Raises DataError if it is something else."""
        try:
            return cls(tuple(Speaker(**value | {"aliases": tuple(value["aliases"])}) for value in read_json(path)))
        except (TypeError, KeyError) as error:
            raise DataError(
                f"{path}: not a list of speakers as erckit writes it ({error}). Run `ingest` again."
            ) from error


def identify_speakers(corpus: Corpus, aliases: Mapping[str, str]) -> tuple[Corpus, SpeakerRegistry]:
    """Give every utterance canonical names, and every person an identity.

    `aliases` maps an alias to a canonical name. Names that differ only in case, quotes and blanks are one person, spelt
    as in `aliases`, else as most often in train (the first, if equal). Who is unseen there is spelt as at their first
    utterance in the same dialogue: nothing later and no other dialogue decides what a prompt says.
    Returns the renamed corpus and the registry.
    """
    table = {fold_name(name): name for name in aliases.values()}
    table |= {fold_name(alias): name for alias, name in aliases.items()}
    voted = _count_spellings(corpus.dialogues["train"])
    known = {key: found.most_common(1)[0][0] for key, found in voted.items()} | table
    renamed = {
        split: tuple(_rename(dialogue, known) for dialogue in corpus.dialogues[split]) for split in corpus.dialogues
    }
    spellings = _count_spellings(dialogue for split in SPLITS for dialogue in corpus.dialogues.get(split, ()))
    canonical = {key: known.get(key, next(iter(found))) for key, found in spellings.items()}
    others: defaultdict[str, dict[str, None]] = defaultdict(dict)  # dicts as ordered sets
    for alias, name in aliases.items():
        others[name][alias] = None
    for key, name in canonical.items():
        others[name] |= dict.fromkeys(spellings[key])
    training = {name for dialogue in renamed["train"] for u in dialogue.utterances for name in u.speakers}
    speakers = tuple(
        Speaker(
            id=speaker_id(corpus.name, name),
            name=name,
            aliases=tuple(other for other in others[name] if other != name),
            seen=name in training,
        )
        for name in dict.fromkeys(canonical.values())
    )
    return replace(corpus, dialogues=renamed), SpeakerRegistry(speakers)


def speaker_id(corpus_name: str, canonical_name: str) -> int:
    """Return the identity: the first 52 bits of BLAKE2b over both names, which JSON numbers and int64 hold exactly."""
    digest = blake2b(f"{corpus_name}\0{fold_name(canonical_name)}".encode()).digest()
    return int.from_bytes(digest[:7]) >> 4


def fold_name(name: str) -> str:
    """Return what is left of a name when case, quotes, blanks and ways to write an accent do not count."""
    # Quotes before, because NFKC takes an acute accent apart, and after, because it narrows wide quotes.
    folded = unicodedata.normalize("NFKC", name.translate(QUOTES)).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).translate(QUOTES).split())


def find_aliases(corpus_name: str) -> dict[str, str]:
    """Return the alias table that erckit ships for a corpus, empty where it ships none."""
    path = ALIAS_TABLES / f"{corpus_name}.yaml"
    return read_aliases(path) if path.is_file() else {}


def read_aliases(path: Path) -> dict[str, str]:
    """Read a YAML table `canonical name: [alias, ...]`. Returns alias -> canonical name.

    Raises DataError if a name stands for two people, or if the file is no such table.
    """
    # The nodes, not the values: they know their lines, and a name such as No or 007 stays a name.
    text, _ = read_text(path)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise DataError(f"{place}: broken YAML ({getattr(error, 'problem', error)}). Mend the line.") from error
    aliases: dict[str, str] = {}
    owners: dict[str, str] = {}
    for key, value in _table_nodes(root, path):
        for node in (key, *value.value):
            owner = owners.setdefault(fold_name(node.value), key.value)
            if owner != key.value:
                raise DataError(
                    f"{path}:{node.start_mark.line + 1}: {node.value!r} stands under {owner!r} and {key.value!r}. "
                    "Each name belongs to one person; remove one of the two."
                )
            if node is not key:
                aliases[node.value] = key.value
    return aliases


def _table_nodes(root: yaml.Node | None, path: Path) -> Iterator[tuple[yaml.ScalarNode, yaml.SequenceNode]]:
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise DataError(f"{path}:{root.start_mark.line + 1}: expected lines `canonical name: [alias, ...]`.")
    for key, value in root.value if root else ():
        names = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not isinstance(value, yaml.SequenceNode) or not all(isinstance(n, yaml.ScalarNode) for n in (key, *names)):
            raise DataError(f"{path}:{key.start_mark.line + 1}: expected `canonical name: [alias, ...]`.")
        yield key, value


def _count_spellings(dialogues: Iterable[Dialogue]) -> dict[str, Counter[str]]:
    """Return for every folded name, in order of first appearance, how often each spelling of it occurs."""
    spellings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for dialogue in dialogues:
        for utterance in dialogue.utterances:
            for name in utterance.speakers:
                spellings[fold_name(name)][name] += 1
    return spellings


def _rename(dialogue: Dialogue, known: Mapping[str, str]) -> Dialogue:
    first = {key: next(iter(found)) for key, found in _count_spellings([dialogue]).items()}
    canonical = first | {key: known[key] for key in first if key in known}
    return replace(dialogue, utterances=tuple(rename_utterance(u, canonical) for u in dialogue.utterances))


def rename_utterance(utterance: Utterance, names: Mapping[str, str]) -> Utterance:
    """Return an utterance with the canonical names of its speakers, each once; `names` has them by folded name."""
    renamed = dict.fromkeys(names.get(fold_name(name), name) for name in utterance.speakers)
    return replace(utterance, speakers=tuple(renamed))
