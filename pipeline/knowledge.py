"""What may be told in the prompts of a dialogue about who speaks in it: from training dialogues, never from its own."""

from collections.abc import Callable
from functools import partial

import numpy as np

from ..data.dialogue import Dialogue
from ..data.speakers import SpeakerRegistry
from ..prompts.tasks import NOTHING_KNOWN, Knowledge
from ..retrieval.biographer import StatisticalBiographer
from ..retrieval.encoder import SentenceEncoder
from ..retrieval.store import ProfileStore
from .artefacts import load_speakers
from .config import Config, Prompts
from .run import Run
from .stages.profiles import build_biographer

Inform = Callable[[Dialogue, np.ndarray], Knowledge]
"""From a dialogue and the vectors of its utterances to what may be told. Other processes take it along."""


def choose_knowledge(config: Config, run: Run, encoder: SentenceEncoder, split: str) -> Inform:
    """Return what a split is told. Raises DataError where the store knows dev or test, which it is about."""
    if not tells_facts(config.prompts):
        return _tell_nothing
    count = config.prompts.facts
    if split == "train":
        return partial(leave_out, build_biographer(config, run, encoder), count)
    store = ProfileStore.load(run.path("profiles"), encoder.name, encoder.fingerprint, encoder.dimension)
    store.refuse_split(split)
    return partial(_look_up_turns, store, load_speakers(run), count)


def tells_facts(settings: Prompts) -> bool:
    """Whether prompts tell anything of speakers beyond what they say."""
    return settings.biography_tokens > 0 or (settings.facts > 0 and settings.fact_tokens > 0)


def leave_out(biographer: StatisticalBiographer, count: int, dialogue: Dialogue, vectors: np.ndarray) -> Knowledge:
    """What may be told in training prompts of a dialogue: nothing that draws on the dialogue itself."""

    def nearest(turn: int) -> list[str]:
        names = dialogue.utterances[turn].speakers
        found = [pair for name in names for pair in biographer.nearest(name, vectors[turn], count, dialogue)]
        return [fact.text for fact, _ in sorted(found, key=lambda pair: (-pair[1], pair[0].id))[:count]]

    return Knowledge(general=partial(biographer.general, without=dialogue), nearest=nearest)


def look_up(
    store: ProfileStore,
    speakers: SpeakerRegistry,
    count: int,
    dialogue: Dialogue,
    vector_of: Callable[[int], np.ndarray],
) -> Knowledge:
    """What may be told in the prompts of a dialogue that no fact draws on; `vector_of` embeds the text of a turn."""

    def find(name: str) -> int | None:
        return speakers[name].id if name in speakers else None

    def general(name: str) -> list[str] | None:
        id = find(name)
        facts = [] if id is None else store.facts_of(id)
        return [fact.text for fact in facts if fact.general] if facts else None

    def nearest(turn: int) -> list[str]:
        ids = [id for name in dialogue.utterances[turn].speakers if (id := find(name)) is not None]
        found = [pair for id in ids for pair in store.search(vector_of(turn), count, speaker=id)]
        return [fact.text for fact, _ in sorted(found, key=lambda pair: (-pair[1], pair[0].id))[:count]]

    return Knowledge(general=general, nearest=nearest)


def _look_up_turns(
    store: ProfileStore, speakers: SpeakerRegistry, count: int, dialogue: Dialogue, vectors: np.ndarray
) -> Knowledge:
    return look_up(store, speakers, count, dialogue, vectors.__getitem__)


def _tell_nothing(dialogue: Dialogue, vectors: np.ndarray) -> Knowledge:
    return NOTHING_KNOWN
