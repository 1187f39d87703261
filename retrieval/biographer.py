"""The statistical biographer: writes profile facts from counts and embeddings of training dialogues, without an LLM.

Every fact of a speaker can be told as if one dialogue did not exist, everybody's base rates included; training
prompts use that (leave one dialogue out), at a cost that does not grow with the corpus.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import log

import numpy as np

from ..data.dialogue import Dialogue, Utterance
from ..data.labels import LabelSet
from ..data.speakers import SpeakerRegistry
from .profiles import Fact

SMOOTHING = 20.0  # pseudo-utterances at everybody's rates: small samples say little
NOTABLE = log(1.2)  # a rate counts as different from 20 % more or less on
FEWEST = 10  # labelled utterances, or transitions, under which no rate is stated
EXAMPLE_WORDS = range(3, 26)


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance that may represent an emotion of its speaker; `row` is its place among all training utterances."""

    dialogue: str
    utterance: Utterance
    row: int
    typicality: float


class StatisticalBiographer:
    """Writes the facts of a speaker from labelled training dialogues.

    `vectors` has a row for every utterance in order, shape (utterances, dimension), and `prototypes` one for every
    label ("I feel joyful."), shape (labels, dimension), all of length 1. An utterance represents its emotion the
    better, the nearer it is to the prototype of its label than to the others. That measure knows nothing of other
    dialogues, so leaving one out only moves the next candidates up.
    """

    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        vectors: np.ndarray,
        prototypes: np.ndarray,
        labels: LabelSet,
        speakers: SpeakerRegistry,
        examples_per_emotion: int,
    ) -> None:
        self.labels, self.speakers, self.vectors = labels, speakers, vectors
        self.examples_per_emotion = examples_per_emotion
        self._felt = _Tally()  # emotions of a speaker
        self._own = _Tally()  # pairs: a speaker's emotion, their next one
        self._others = _Tally()  # pairs: somebody else's emotion, the speaker's right after
        self._everybody = _Tally()
        self._examples: dict[tuple[str, str], list[Example]] = defaultdict(list)
        for dialogue in dialogues:
            self._count(dialogue)
        self._collect_examples(dialogues, _measure_typicality(vectors, prototypes))

    def write_facts(self, speaker: str) -> list[Fact]:
        """Return all facts of a speaker for the store, general ones first, in a stable order."""
        id = self.speakers[speaker].id
        dialogues = tuple(sorted(self._felt.dialogues_of(speaker)))
        general = [
            Fact(f"{id}:{name}", id, kind, text, True, "train", dialogues, ())
            for name, kind, text in self._write_general(speaker, None)
        ]
        examples = [self._as_fact(speaker, e) for label in self.labels for e in self._typical(speaker, label, None)]
        return general + examples

    def general(self, speaker: str, without: str) -> list[str] | None:
        """Return the texts of the speaker's general facts, told as if the dialogue `without` did not exist.

        None is returned where nothing at all is known of them, no example of an emotion either.
        """
        general = [text for _, _, text in self._write_general(speaker, without)]
        known = general or any(True for label in self.labels for _ in self._typical(speaker, label, without))
        return general if known else None

    def nearest(self, speaker: str, query: np.ndarray, count: int, without: str) -> list[tuple[Fact, float]]:
        """Return what `ProfileStore.search` would find for this speaker, had the dialogue `without` not existed."""
        examples = [e for label in self.labels for e in self._typical(speaker, label, without)]
        scores = (self.vectors[[e.row for e in examples]] @ query).tolist()
        found = [
            (self._as_fact(speaker, example), round(score, 6)) for example, score in zip(examples, scores, strict=True)
        ]
        return sorted(found, key=lambda pair: (-pair[1], pair[0].id))[:count]

    def _write_general(self, speaker: str, without: str | None) -> list[tuple[str, str, str]]:
        """Return (name, kind, text) of each general fact, in the order of their names, which is the store's."""
        written = (
            ("base_rate", "base_rate", self._tell_base_rates(speaker, without)),
            ("others", "transition", self._tell_contagion(speaker, without)),
            ("own", "transition", self._tell_own_course(speaker, without)),
        )
        return [(name, kind, text) for name, kind, text in written if text]

    def _tell_base_rates(self, speaker: str, without: str | None) -> str:
        own = self._felt.counts(speaker, without)
        if own.total() < FEWEST:
            return ""
        felt = self._everybody.counts("", without)
        others = _shares(felt - own, self.labels)
        shares = _shares(own, self.labels, others)
        departures = {label: log(shares[label] / others[label]) for label in self.labels}
        by_departure = _ranked(departures)
        more = [label for label in by_departure if departures[label] > NOTABLE][:2]
        less = [label for label in reversed(by_departure) if departures[label] < -NOTABLE and felt[label]][:2]
        usual = _ranked({label: float(own[label]) for label in self.labels if own[label]})[:2]
        text = f"{speaker} is mostly {' and '.join(usual)}"
        text += f", more often {' and '.join(more)} than others" if more else ""
        text += f", less often {' and '.join(less)}" if less else ""
        return text + "."

    def _tell_own_course(self, speaker: str, without: str | None) -> str:
        before, after = self._notable_pair(self._own.counts(speaker, without))
        if not before:
            return ""
        return f"Once {before}, {speaker} " + (
            f"tends to stay {before}." if before == after else f"soon turns {after}."
        )

    def _tell_contagion(self, speaker: str, without: str | None) -> str:
        before, after = self._notable_pair(self._others.counts(speaker, without))
        return f"When others are {before}, {speaker} is often {after}." if before else ""

    def _notable_pair(self, pairs: Counter[tuple[str, str]]) -> tuple[str, str]:
        """Return the (before, after), neither neutral, that stands out most from the base rates, or two blanks."""
        rows = {before: Counter({after: pairs[before, after] for after in self.labels}) for before in self.labels}
        base = _shares(_sum(rows.values()), self.labels)
        evidence: dict[tuple[str, str], float] = {}
        for before, row in rows.items():
            if before == self.labels.neutral or row.total() < FEWEST:
                continue
            shares = _shares(row, self.labels, base)
            for after in self.labels:
                departure = log(shares[after] / base[after])
                if after != self.labels.neutral and departure > NOTABLE:
                    evidence[before, after] = row[after] * departure  # weighed by how often, so that luck does not win
        return min(evidence, key=lambda pair: (-evidence[pair], pair), default=("", ""))

    def _typical(self, speaker: str, label: str, without: str | None) -> Iterable[Example]:
        candidates = (e for e in self._examples.get((speaker, label), ()) if e.dialogue != without)
        return islice(candidates, self.examples_per_emotion)

    def _as_fact(self, speaker: str, example: Example) -> Fact:
        id, utterance = self.speakers[speaker].id, example.utterance
        return Fact(
            id=f"{id}:example:{example.dialogue}:{utterance.id}",
            speaker=id,
            kind="example",
            text=f"Once {utterance.label}, {speaker} said: {utterance.text}",
            general=False,
            split="train",
            dialogues=(example.dialogue,),
            utterances=(utterance.id,),
            query=utterance.text,
        )

    def _count(self, dialogue: Dialogue) -> None:
        last_of: dict[str, str] = {}
        previous: Utterance | None = None
        for utterance in dialogue.utterances:
            if utterance.label is not None:
                self._everybody.add("", dialogue.id, utterance.label)
                for speaker in utterance.speakers:
                    self._felt.add(speaker, dialogue.id, utterance.label)
                    if speaker in last_of:
                        self._own.add(speaker, dialogue.id, (last_of[speaker], utterance.label))
                    if previous is not None and previous.label is not None and speaker not in previous.speakers:
                        self._others.add(speaker, dialogue.id, (previous.label, utterance.label))
                    last_of[speaker] = utterance.label
            previous = utterance

    def _collect_examples(self, dialogues: Sequence[Dialogue], typicality: np.ndarray) -> None:
        utterances = ((dialogue.id, utterance) for dialogue in dialogues for utterance in dialogue.utterances)
        for row, (dialogue, utterance) in enumerate(utterances):
            if utterance.label is not None and len(utterance.text.split()) in EXAMPLE_WORDS:
                score = float(typicality[row, self.labels.index(utterance.label)])
                for speaker in utterance.speakers:
                    self._examples[speaker, utterance.label].append(Example(dialogue, utterance, row, score))
        for examples in self._examples.values():
            examples.sort(key=lambda example: (-example.typicality, example.utterance.id))


class _Tally:
    """Counts of things a speaker did, in all and by dialogue, so that one dialogue can be left out by subtraction."""

    def __init__(self) -> None:
        self._all: dict[str, Counter] = defaultdict(Counter)
        self._by_dialogue: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))

    def add(self, speaker: str, dialogue: str, thing: object) -> None:
        self._all[speaker][thing] += 1
        self._by_dialogue[speaker][dialogue][thing] += 1

    def counts(self, speaker: str, without: str | None) -> Counter:
        return self._all.get(speaker, Counter()) - self._by_dialogue.get(speaker, {}).get(without or "", Counter())

    def dialogues_of(self, speaker: str) -> Iterable[str]:
        return self._by_dialogue.get(speaker, {})


def _measure_typicality(vectors: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    similarity = vectors @ prototypes.T
    others = (similarity.sum(axis=1, keepdims=True) - similarity) / (similarity.shape[1] - 1)
    return similarity - others


def _shares(counts: Counter, labels: LabelSet, prior: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the smoothed share of each label, towards `prior`, or by one count of each where there is none."""
    total = sum(counts[label] for label in labels)
    if prior is None:
        return {label: (counts[label] + 1) / (total + len(labels)) for label in labels}
    return {label: (counts[label] + SMOOTHING * prior[label]) / (total + SMOOTHING) for label in labels}


def _ranked(values: Mapping[str, float]) -> list[str]:
    return sorted(values, key=lambda label: -values[label])


def _sum(counters: Iterable[Counter]) -> Counter:
    return sum(counters, Counter())
