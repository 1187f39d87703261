"""Emotions for programs: a trained run, or an adapter alone, answers conversations live or in bulk.

recognizer = Recognizer.load("runs/sample")
conversation = recognizer.conversation(memory=Memory())
print(conversation.add("Ada", "Who left the hatch open?").label)
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dialogue import Dialogue
from ..data.errors import DataError
from ..data.files import hash_file, read_json
from ..data.labels import LabelSet
from ..data.speakers import SpeakerRegistry
from ..prompts.tasks import Knowledge, Task, build_trees
from ..prompts.tokens import PieceTokenizer
from ..prompts.tree import PromptTree, read_aloud
from ..prompts.wording import read_wording
from ..retrieval.encoder import SentenceEncoder
from ..retrieval.store import ProfileStore
from .adapter import CARD, load_adapter
from .artefacts import load_labels, load_speakers
from .backbone import fingerprint, load_model, load_tokenizer
from .config import Config, Data, Model, Prompts, load_config
from .conversation import Conversation
from .memory.conversations import Remembered, answer_with_memory
from .memory.settings import Memory
from .run import Run
from .scoring import Answer, answer_trees
from .stages.prompts import look_up, make_task

Inform = Callable[[Dialogue], Knowledge]
"""What may be told of the speakers of a dialogue."""


@dataclass(frozen=True, slots=True)
class Recognized:
    """The emotion of one utterance.

    `facts` is what was retrieved for it, `prompt` the text that was asked. `written` is whether the turn was written
    into the temporary memory, None without one; a write that diverged is `undone`.
    """

    dialogue: str
    utterance: str
    label: str
    probabilities: Mapping[str, float]
    facts: str
    prompt: str
    written: bool | None = None
    undone: bool = False


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
        speakers: SpeakerRegistry | None = None,
    ) -> None:
        self.config, self.model, self.task, self.speakers, self._inform = config, model, task, speakers, inform
        self.identity = identity  # of base model, adapter and wording, SHA-256
        self.both_ways = config.model.attention == "utterance"

    @classmethod
    def load(cls, path: str | Path, seed: int | None = None) -> "Recognizer":
        """Load a run folder (where it has several seeds, that of `seed`), or the folder of an adapter by itself.

        With an adapter by itself, nothing is known of any speaker. Raises DataError where `path` is neither.
        """
        folder = Path(path)
        if (folder / CARD).is_file():
            card = read_json(folder / CARD)
            model = Model(name=card["base_model"], revision=card["revision"], attention=card["attention"])
            prompts = Prompts(**card["protocol"] | {"template": str(folder / "wording")})
            config = Config(name="adapter", data=Data(path="none"), model=model, prompts=prompts)
            return cls._assemble(config, folder, LabelSet(tuple(card["labels"])), _know_nobody)
        if not (folder / "config.yaml").is_file():
            raise DataError(
                f"{folder}: neither a run (it has no config.yaml) nor an adapter that erckit made (it has no {CARD}). "
                "Name the folder of one of them, such as runs/sample."
            )
        config = load_config(str(folder / "config.yaml"), seed=seed)
        run = Run(folder, config.seed)
        wording = {"template": str(run.path("prompts", "wording"))}
        config = config.model_copy(update={"prompts": config.prompts.model_copy(update=wording)})
        adapter = Path(config.predict.adapter) if config.predict.adapter else run.path("train", "adapter")
        encoder = SentenceEncoder(config.profiles.encoder)
        store = ProfileStore.load(run.path("profiles"), encoder.name, encoder.fingerprint, encoder.dimension)
        speakers = load_speakers(run)
        inform = _know_from(store, speakers, encoder, config.prompts.facts)
        return cls._assemble(config, adapter, load_labels(run), inform, speakers)

    @classmethod
    def _assemble(
        cls,
        config: Config,
        adapter: Path,
        labels: LabelSet,
        inform: Inform,
        speakers: SpeakerRegistry | None = None,
    ) -> "Recognizer":
        wording = read_wording(config.prompts.template)
        tokens = PieceTokenizer(load_tokenizer(config.model), labels, wording, chat=config.prompts.chat)
        model = load_adapter(load_model(config.model), adapter, config, labels, wording)
        task = make_task(config.prompts, wording, tokens, labels)
        parts = (fingerprint(config.model), hash_file(adapter / "adapter_model.safetensors"), wording.hash)
        identity = hashlib.sha256("".join(parts).encode()).hexdigest()
        return cls(config, model, task, inform, identity=identity, speakers=speakers)

    def conversation(self, memory: Memory | None = None) -> Conversation:
        """Begin a conversation, with a temporary memory or without."""
        return Conversation(self, memory)

    def resume(self, path: str | Path) -> Conversation:
        """Take up a conversation that was saved (`Conversation.save`): it goes on as if it had never stopped."""
        return Conversation.restore(self, Path(path))

    def remembering_task(self, memory: Memory) -> Task:
        """Return how prompts are made beside a memory: each shows its window of utterances alone."""
        return replace(self.task, history="window", window=memory.window)

    def predict(self, dialogues: Iterable[Dialogue], memory: Memory | None = None) -> Iterator[Recognized]:
        """Yield the emotion of every utterance, dialogue by dialogue, in order: streaming, in flat memory.

        With a memory of the scope "session", dialogues of one session are to follow one another.
        """
        if memory is None:
            trees = (tree for dialogue in dialogues for tree in self.plant(dialogue, self.task))
            yield from (self.describe(answer) for answer in self.answer(trees))
            return
        task = self.remembering_task(memory)
        groups = ((tree for d in group for tree in self.plant(d, task)) for group in share_memory(dialogues, memory))
        answered = answer_with_memory(
            self.model,
            task.tokens,
            task.wording,
            groups,
            memory,
            both_ways=self.both_ways,
            row_tokens=self.config.predict.row_tokens,
        )
        yield from (self.describe(one.answer, one) for one in answered)

    def describe(self, answer: Answer, remembered: Remembered | None = None) -> Recognized:
        return Recognized(
            dialogue=answer.dialogue,
            utterance=answer.branch.utterance,
            label=answer.label,
            probabilities=dict(zip(self.task.tokens.answers, answer.probabilities, strict=True)),
            facts=read_aloud(answer.branch.facts).strip(),
            prompt=read_aloud(answer.prompt),
            written=None if remembered is None else remembered.written,
            undone=remembered is not None and remembered.undone,
        )

    def answer(
        self, trees: Iterable[PromptTree], gold: Mapping[str, Mapping[int, str]] | None = None
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
        )

    def spell(self, name: str) -> str:
        """Return how prompts spell a name: as training does, where it has that person."""
        return self.speakers[name].name if self.speakers is not None and name in self.speakers else name

    def plant(self, dialogue: Dialogue, task: Task, first: int = 0) -> Iterator[PromptTree]:
        """Yield the trees that ask about the turns of a dialogue from `first` on."""
        asked = range(first, len(dialogue.utterances))
        return build_trees(dialogue, self._inform(dialogue), task, asked=asked, losses=Counter())


def share_memory(dialogues: Iterable[Dialogue], memory: Memory) -> Iterator[Iterable[Dialogue]]:
    """Yield the dialogues that share a memory: each by itself, or all of them where memories are of speakers."""
    if memory.scope == "speaker":
        yield dialogues
    else:
        yield from ([dialogue] for dialogue in dialogues)


def _know_nobody(dialogue: Dialogue) -> Knowledge:
    return Knowledge(general=lambda name: None, nearest=lambda turn: ())


def _know_from(store: ProfileStore, speakers: SpeakerRegistry, encoder: SentenceEncoder, count: int) -> Inform:
    def inform(dialogue: Dialogue) -> Knowledge:
        def embed(turn: int) -> np.ndarray:
            return encoder.encode([dialogue.utterances[turn].text])[0]

        return look_up(store, speakers, count, dialogue, embed)

    return inform
