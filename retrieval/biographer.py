"""The statistical biographer: writes profile facts from counts and embeddings of training dialogues, without an LLM.

Every fact of a speaker can be told as if one dialogue did not exist, everybody's base rates included; training
prompts use that (leave one dialogue out), at a cost that does not grow with the corpus. What is kept grows with the
number of speakers, not with what they say: counts over all dialogues, and the examples that may be told.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
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
SPARE = 8  # times as many examples are gathered as are told, before those that never will be go


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance that may represent an emotion of its speaker, and the vector of its text."""

    dialogue: str
    utterance: Utterance
    vector: np.ndarray
    typicality: float


class StatisticalBiographer:
    """Writes the facts of a speaker from labelled training dialogues.

    `read` are the dialogues, each with a vector for every utterance in order, shape (utterances, dimension), and
    `prototypes` has one for every label ("I feel joyful."), shape (labels, dimension), all of length 1. An utterance
    represents its emotion the better, the nearer it is to the prototype of its label than to the others. That measure
    knows nothing of other dialogues, so leaving one out only moves the next candidates up.
    """

    def __init__(
        self,
        read: Iterable[tuple[Dialogue, np.ndarray]],
        prototypes: np.ndarray,
        labels: LabelSet,
        speakers: SpeakerRegistry,
        examples_per_emotion: int,
    ) -> None:
        self.labels, self.speakers, self.examples_per_emotion = labels, speakers, examples_per_emotion
        self._all = _Tally()
        self._dialogues: dict[str, list[str]] = defaultdict(list)  # in which a speaker felt anything
        self._examples: dict[tuple[str, str], list[Example]] = defaultdict(list)
        for dialogue, vectors in read:
            self._all.add(dialogue)
            for speaker in {name for u in dialogue.utterances if u.label is not None for name in u.speakers}:
                self._dialogues[speaker].append(dialogue.id)
            self._collect_examples(dialogue, _measure_typicality(vectors, prototypes), vectors)
        for examples in self._examples.values():
            _keep_tellable(examples, examples_per_emotion)

    def write_facts(self, speaker: str) -> list[Fact]:
        """Return all facts of a speaker for the store, general ones first, in a stable order."""
        id = self.speakers[speaker].id
        dialogues = tuple(sorted(self._dialogues.get(speaker, ())))
        general = [
            Fact(f"{id}:{name}", id, kind, text, True, "train", dialogues, ())
            for name, kind, text in self._write_general(speaker, None)
        ]
        examples = [self._as_fact(speaker, e) for label in self.labels for e in self._typical(speaker, label, None)]
        return general + examples

    def general(self, speaker: str, without: Dialogue | None) -> list[str] | None:
        """Return the texts of the speaker's general facts, told as if the dialogue `without` did not exist.

        None is returned where nothing at all is known of them, no example of an emotion either.
        """
        general = [text for _, _, text in self._write_general(speaker, without)]
        known = general or any(True for label in self.labels for _ in self._typical(speaker, label, without))
        return general if known else None

    def nearest(
        self, speaker: str, query: np.ndarray, count: int, without: Dialogue | None
    ) -> list[tuple[Fact, float]]:
        """Return what `ProfileStore.search` would find for this speaker, had the dialogue `without` not existed."""
        examples = [e for label in self.labels for e in self._typical(speaker, label, without)]
        scored = [(round(float(e.vector @ query), 6), f"{e.dialogue}:{e.utterance.id}", e) for e in examples]
        best = sorted(scored, key=lambda found: (-found[0], found[1]))[:count]  # as by the ids of their facts
        return [(self._as_fact(speaker, example), score) for score, _, example in best]

    def _write_general(self, speaker: str, without: Dialogue | None) -> list[tuple[str, str, str]]:
        """Return (name, kind, text) of each general fact, in the order of their names, which is the store's."""
        read, left_out = self._all, _tally(without) if without else _Tally()
        felt = read.felt[speaker] - left_out.felt[speaker]
        everybody = read.everybody - left_out.everybody
        written = (
            ("base_rate", "base_rate", self._tell_base_rates(speaker, felt, everybody)),
            ("others", "transition", self._tell_contagion(speaker, read.others[speaker] - left_out.others[speaker])),
            ("own", "transition", self._tell_own_course(speaker, read.own[speaker] - left_out.own[speaker])),
        )
        return [(name, kind, text) for name, kind, text in written if text]

    def _tell_base_rates(self, speaker: str, own: Counter[str], felt: Counter[str]) -> str:
        """Word how often a speaker feels what; `own` are their counts and `felt` everybody's."""
        if own.total() < FEWEST:
            return ""
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

    def _tell_own_course(self, speaker: str, pairs: Counter[tuple[str, str]]) -> str:
        before, after = self._notable_pair(pairs)
        if not before:
            return ""
        return f"Once {before}, {speaker} " + (
            f"tends to stay {before}." if before == after else f"soon turns {after}."
        )

    def _tell_contagion(self, speaker: str, pairs: Counter[tuple[str, str]]) -> str:
        before, after = self._notable_pair(pairs)
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

    def _typical(self, speaker: str, label: str, without: Dialogue | None) -> Iterable[Example]:
        examples = self._examples.get((speaker, label), ())
        candidates = (e for e in examples if without is None or e.dialogue != without.id)
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

    def _collect_examples(self, dialogue: Dialogue, typicality: np.ndarray, vectors: np.ndarray) -> None:
        for utterance, of_labels, vector in zip(dialogue.utterances, typicality, vectors, strict=True):
            if utterance.label is not None and len(utterance.text.split()) in EXAMPLE_WORDS:
                # A copy, because a row of an array keeps the whole array.
                score = float(of_labels[self.labels.index(utterance.label)])
                example = Example(dialogue.id, utterance, vector.copy(), score)
                for speaker in utterance.speakers:
                    gathered = self._examples[speaker, utterance.label]
                    gathered.append(example)
                    if len(gathered) > SPARE * self.examples_per_emotion:
                        _keep_tellable(gathered, self.examples_per_emotion)


class _Tally:
    """What speakers felt, and what followed upon what."""

    def __init__(self) -> None:
        self.everybody: Counter[str] = Counter()
        self.felt: dict[str, Counter[str]] = defaultdict(Counter)  # emotions of a speaker
        self.own: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)  # a speaker's emotion, their next one
        self.others: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)  # another's, the speaker's right after

    def add(self, dialogue: Dialogue) -> None:
        last_of: dict[str, str] = {}
        previous: Utterance | None = None
        for utterance in dialogue.utterances:
            if utterance.label is not None:
                self.everybody[utterance.label] += 1
                for speaker in utterance.speakers:
                    self.felt[speaker][utterance.label] += 1
                    if speaker in last_of:
                        self.own[speaker][last_of[speaker], utterance.label] += 1
                    if previous is not None and previous.label is not None and speaker not in previous.speakers:
                        self.others[speaker][previous.label, utterance.label] += 1
                    last_of[speaker] = utterance.label
            previous = utterance


@lru_cache(maxsize=1)  # all prompts of a dialogue leave it out
def _tally(dialogue: Dialogue) -> _Tally:
    tally = _Tally()
    tally.add(dialogue)
    return tally


def _keep_tellable(examples: list[Example], count: int) -> None:
    """Sort examples, the most typical first, and drop those that are among the first `count` without no dialogue.

    Whatever comes later, they stay behind these.
    """
    examples.sort(key=lambda example: (-example.typicality, example.utterance.id))
    of_dialogue: Counter[str] = Counter()
    for place, example in enumerate(examples, start=1):
        of_dialogue[example.dialogue] += 1
        if place - max(of_dialogue.values()) >= count:
            del examples[place:]
            return


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
