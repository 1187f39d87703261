"""A conversation while it goes on, answered utterance by utterance, saved and taken up again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.dialogue import Dialogue, Utterance
from ..data.errors import DataError
from ..data.reading import build_utterance
from .config import Memory
from .memory.conversations import Thread, show_window
from .memory.factors import State
from .memory.saving import export_adapter, read_conversation, save_conversation
from .memory.writing import Writer

if TYPE_CHECKING:
    from .recognizer import Recognized, Recognizer

ID = "conversation"


class Conversation:
    """Every utterance is answered when it is added, and nothing later changes that.

    With a memory, what was said and felt is written into it, and of the history prompts show its window alone.
    """

    def __init__(self, recognizer: "Recognizer", memory: Memory | None) -> None:
        if memory is not None and memory.oracle:
            raise DataError("`memory.oracle` writes gold emotions, and a live conversation has none. Leave it out.")
        self.recognizer, self.memory = recognizer, memory
        self._utterances: list[Utterance] = []
        self._felt: dict[int, str] = {}
        if memory is not None:
            self._task = show_window(recognizer.task, memory)
            self._writer = Writer(recognizer.model, self._task.tokens, memory, slots=1)
            self._thread = Thread(self._task.tokens, self._task.wording, recognizer.both_ways)
            self._chunk: list[int] = []  # the turns that were written last

    def add(self, speaker: str | Sequence[str], text: str) -> "Recognized":
        """Return the emotion of the next utterance, of one speaker or of several together.

        Raises DataError without a speaker or without text; the conversation is then as it was.
        """
        turn = len(self._utterances)
        speakers = [speaker] if isinstance(speaker, str) else speaker
        utterance = self.recognizer.spell(build_utterance(str(turn), speakers, text, None, None, f"turn {turn}"))
        dialogue = Dialogue(ID, (*self._utterances, utterance))
        found = self._answer(dialogue, turn) if self.memory is None else self._remember(dialogue, turn)
        self._utterances.append(utterance)
        self._felt[turn] = found.label
        return found

    def forget(self) -> None:
        """Drop what was written so far; what was said, and the emotions recognised, stay."""
        if self.memory is not None:
            self._writer.forget(0)
            self._thread.memories.clear()

    def save(self, path: str | Path) -> None:
        """Write all that is needed to go on (`Recognizer.resume`) into one file, at once or not at all."""
        record: dict[str, Any] = {
            "model": self.recognizer.identity,
            "memory": None if self.memory is None else self.memory.model_dump(mode="json"),
            "utterances": [{"speakers": list(u.speakers), "text": u.text} for u in self._utterances],
            "felt": [self._felt[turn] for turn in range(len(self._utterances))],
        }
        tensors: dict[str, torch.Tensor] = {}
        if self.memory is not None:
            waiting, gradients = self._writer.waiting(0)
            turns = self._chunk[len(self._chunk) - len(waiting) :]
            record["waiting"] = [[turn, *held] for turn, held in zip(turns, waiting, strict=True)]
            record["speakers"] = list(self._thread.memories)
            record["factors"] = self._writer.factors.fingerprint()
            states = {"": self._writer.factors.take([0])} | self._thread.memories
            for place, state in enumerate(states.values()):
                tensors |= {f"{place}.values": state.values, f"{place}.moments": state.moments}
                tensors[f"{place}.steps"] = state.steps
            tensors["gradients"] = gradients
        save_conversation(Path(path), tensors, record)

    @classmethod
    def restore(cls, recognizer: "Recognizer", path: Path) -> "Conversation":
        """Go on where `save` was called. Raises DataError where another model or adapter, or another file, is given."""
        tensors, record = read_conversation(path)
        if record["model"] != recognizer.identity:
            raise DataError(
                f"{path}: saved with another model, adapter or wording ({record['model'][:12]}, expected "
                f"{recognizer.identity[:12]}). Load the one that it was begun with."
            )
        memory = None if record["memory"] is None else Memory(**record["memory"])
        self = cls(recognizer, memory)
        self._utterances = [
            Utterance(str(turn), tuple(said["speakers"]), said["text"])
            for turn, said in enumerate(record["utterances"])
        ]
        self._felt = dict(enumerate(record["felt"]))
        if memory is not None:
            if record["factors"] != self._writer.factors.fingerprint():
                raise DataError(
                    f"{path}: this version of torch draws other factors than the one that wrote it; go on with that."
                )
            self._thread.resume(ID, self._felt)
            states = [
                State(*(tensors[f"{place}.{name}"] for name in ("values", "moments", "steps")))
                for place in range(1 + len(record["speakers"]))
            ]
            self._thread.memories = dict(zip(record["speakers"], states[1:], strict=True))
            self._writer.factors.put([0], states[0])
            for turn, label, sure, loss in record["waiting"]:
                (tree,) = recognizer.plant(Dialogue(ID, tuple(self._utterances[: turn + 1])), self._task, first=turn)
                asked = self._thread.ask(tree, 0, self._writer)
                self._writer.hold(asked, label, sure, loss, tensors["gradients"])
                self._chunk.append(turn)
        return self

    def export(self, folder: str | Path) -> None:
        """Write the temporary adapter as one that plain PEFT loads beside the task adapter (`memory.saving`).

        Raises DataError without a memory, or where each speaker has one.
        """
        if self.memory is None or self.memory.scope == "speaker":
            raise DataError("there is no one temporary adapter: the conversation has no memory, or one a speaker.")
        base = self.recognizer.config.model.name
        export_adapter(Path(folder), self.recognizer.model, self._writer.factors, 0, base)

    def _answer(self, dialogue: Dialogue, turn: int) -> "Recognized":
        task = self.recognizer.task
        # Where a segment of the full history begins depends on all turns before.
        first = turn if task.history == "window" else 0
        *_, tree = self.recognizer.plant(dialogue, task, first)
        (answer,) = self.recognizer.answer([replace(tree, branches=tree.branches[-1:])], {ID: self._felt})
        return self.recognizer.describe(answer)

    def _remember(self, dialogue: Dialogue, turn: int) -> "Recognized":
        (tree,) = self.recognizer.plant(dialogue, self._task, first=turn)
        (outcome,) = self._writer.turn([self._thread.ask(tree, 0, self._writer)])
        remembered = self._thread.hear(tree, outcome, 0, self._writer)
        if remembered.written:
            self._chunk = [*self._chunk, turn][-self._writer.settings.chunk :]
        return self.recognizer.describe(remembered.answer, remembered)
