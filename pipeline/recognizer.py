"""Emotions for programs: a trained run, or an adapter alone, answers conversations live or in bulk.

recognizer = Recognizer.load("runs/sample")
conversation = recognizer.conversation(memory=Memory())
print(conversation.add("Ada", "Who left the hatch open?").label)
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dialogue import Dialogue, Utterance
from ..data.files import hash_file
from ..data.speakers import SpeakerRegistry, rename_utterance
from ..data.text import replace_halves
from ..prompts.tasks import NOTHING_KNOWN, Knowledge, Task, build_trees
from ..prompts.tokens import PieceTokenizer
from ..prompts.tree import PromptTree, read_aloud
from ..prompts.wording import read_wording
from ..retrieval.encoder import SentenceEncoder
from ..retrieval.store import ProfileStore
from ..retrieval.store_files import SIDECAR
from .adapter import WEIGHTS, Found, find_adapter, load_adapter
from .artefacts import load_speakers
from .backbone import fingerprint, load_model, load_tokenizer
from .config import Config, Memory
from .conversation import Conversation
from .knowledge import look_up
from .memory.conversations import Remembered, remember_dialogues, show_window
from .scoring import Answer, answer_trees
from .stages.prompts import make_task

Inform = Callable[[Dialogue], Knowledge]
"""What may be told of the speakers of a dialogue."""


@dataclass(frozen=True, slots=True)
class Recognized:
    """The emotion of one utterance.

    `facts` is what was retrieved for it, `prompt` the text that was asked. `written` is whether the turn was written
    into the temporary memory, None without one; a write that diverged is `undone`. `oracle`: gold was written.
    """

    dialogue: str
    utterance: str
    label: str
    probabilities: Mapping[str, float]
    facts: str
    prompt: str
    written: bool | None = None
    undone: bool = False
    oracle: bool = False


class Recognizer:
    """A base model with its task adapter, and what is known of the speakers."""

    def __init__(
        self,
        config: Config,
        model: Any,
        task: Task,
        inform: Inform,
        *,
        identity: str,
        speakers: SpeakerRegistry,
    ) -> None:
        self.config, self.model, self.task, self.speakers, self._inform = config, model, task, speakers, inform
        self.identity = identity  # SHA-256 of all that decides an answer
        self.both_ways = config.model.both_ways

    @classmethod
    def load(cls, path: str | Path, seed: int | None = None, *, trust_remote_code: bool = False) -> "Recognizer":
        """Load a run folder (where it has several seeds, that of `seed`), or an adapter or a merged model by itself.

        By themselves they know nothing of any speaker. Code that comes with a model is run only with
        `trust_remote_code`. Raises DataError where `path` is none of these, or was changed since erckit wrote it.
        """
        found = find_adapter(path, seed, trust_remote_code=trust_remote_code)
        config, run = found.config, found.run
        if run is None:
            return cls._assemble(found, lambda dialogue: NOTHING_KNOWN, SpeakerRegistry(()), ())
        encoder = SentenceEncoder(config.profiles.encoder)
        store = ProfileStore.load(run.path("profiles"), encoder.name, encoder.fingerprint, encoder.dimension)
        speakers = load_speakers(run)
        inform = _know_from(store, speakers, encoder, config.prompts.facts)
        known = [run.path("profiles", SIDECAR), run.path("ingest", "speakers.json")]
        return cls._assemble(found, inform, speakers, known)

    @classmethod
    def _assemble(cls, found: Found, inform: Inform, speakers: SpeakerRegistry, known: Iterable[Path]) -> "Recognizer":
        config, labels = found.config, found.labels
        wording = read_wording(config.prompts.template)
        tokens = PieceTokenizer(load_tokenizer(config.model), labels, wording, chat=config.prompts.chat)
        model, weights = load_model(config.model).eval().requires_grad_(False), list[Path]()
        if not found.merged:
            model = load_adapter(model, found.folder, config, labels, wording)
            weights = [found.folder / WEIGHTS]
        task = make_task(config.prompts, wording, tokens, labels)
        settings = config.model_dump_json(include={"model", "prompts"}, exclude={"prompts": {"template"}})
        parts = (fingerprint(config.model), *map(hash_file, weights), wording.hash, settings, *map(hash_file, known))
        identity = hashlib.sha256("".join(parts).encode()).hexdigest()
        return cls(config, model, task, inform, identity=identity, speakers=speakers)

    def conversation(self, memory: Memory | None = None) -> Conversation:
        """Begin a conversation, with a temporary memory or without."""
        return Conversation(self, memory)

    def resume(self, path: str | Path) -> Conversation:
        """Take up a conversation that was saved (`Conversation.save`): it goes on as if it had never stopped."""
        return Conversation.restore(self, Path(path))

    def predict(self, dialogues: Iterable[Dialogue], memory: Memory | None = None) -> Iterator[Recognized]:
        """Yield the emotion of every utterance, dialogue by dialogue, in order: streaming, in flat memory.

        With a memory of a session, its dialogues come one after the other (`data.dialogue.by_session`). With memories
        of speakers, all dialogues are answered one after the other, and there is one for each speaker.
        """
        dialogues = (
            replace(dialogue, utterances=tuple(map(self.spell, dialogue.utterances))) for dialogue in dialogues
        )
        if memory is None:
            trees = (tree for dialogue in dialogues for tree in self.plant(dialogue, self.task))
            yield from (self.describe(answer) for answer in self.answer(trees))
            return
        task = show_window(self.task, memory)
        answered = remember_dialogues(
            self.model,
            task,
            dialogues,
            lambda dialogue: self.plant(dialogue, task),
            memory,
            both_ways=self.both_ways,
            row_tokens=self.config.predict.row_tokens,
        )
        yield from (self.describe(one.answer, one, memory.oracle) for one in answered)

    def describe(self, answer: Answer, remembered: Remembered | None = None, oracle: bool = False) -> Recognized:
        return Recognized(
            dialogue=answer.dialogue,
            utterance=answer.branch.utterance,
            label=answer.label,
            probabilities=dict(zip(self.task.tokens.answers, answer.probabilities, strict=True)),
            facts=read_aloud(answer.branch.facts).strip(),
            prompt=read_aloud(answer.prompt),
            written=None if remembered is None else remembered.written,
            undone=remembered is not None and remembered.undone,
            oracle=oracle,
        )

    def answer(
        self,
        trees: Iterable[PromptTree],
        gold: Mapping[str, Mapping[int, str]] | None = None,
        total: int | None = None,
    ) -> Iterator[Answer]:
        """Answer trees without a memory (`scoring.answer_trees`)."""
        return answer_trees(
            self.model,
            self.task.tokens,
            self.task.wording,
            trees,
            both_ways=self.both_ways,
            conversations=self.config.predict.conversations,
            row_tokens=self.config.predict.row_tokens,
            gold=gold,
            total=total,
        )

    def spell(self, utterance: Utterance) -> Utterance:
        """Return an utterance with the names that training has for its speakers, where it has them, each once.

        What no tokenizer takes, half a character, is replaced.
        """
        names, text = tuple(map(replace_halves, utterance.speakers)), replace_halves(utterance.text)
        return rename_utterance(replace(utterance, speakers=names, text=text), self.speakers.names)

    def plant(self, dialogue: Dialogue, task: Task, first: int = 0) -> Iterator[PromptTree]:
        """Yield the trees that ask about the turns of a dialogue from `first` on."""
        asked = range(first, len(dialogue.utterances))
        return build_trees(dialogue, self._inform(dialogue), task, asked=asked, losses=Counter())


def _know_from(store: ProfileStore, speakers: SpeakerRegistry, encoder: SentenceEncoder, count: int) -> Inform:
    @lru_cache(maxsize=4096)
    def embed(text: str) -> np.ndarray:
        return encoder.encode([text])[0]

    def inform(dialogue: Dialogue) -> Knowledge:
        return look_up(store, speakers, count, dialogue, lambda turn: embed(dialogue.utterances[turn].text))

    return inform
