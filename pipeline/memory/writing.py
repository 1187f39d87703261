"""Recognise, then write: Dynamic Parameter Memory (arXiv 2507.09076) with the recipe of Temp-LoRA (arXiv 2401.11504).

A conversation starts with a fresh temporary adapter over base and task adapter. A turn is recognised with what is
remembered, its window of utterances and, where prompts tell them, its speaker's recent emotions. Then it is written: a
step down the language-model loss of what was said and the loss of the recognised emotion given its question. Both come
from one forward pass, of all conversations that have a turn, through the layers above the cut; those below it do not
depend on any memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.functional import cross_entropy

from ...prompts.packing import Leaf, Part, TreeTokens
from ...prompts.tokens import PieceTokenizer
from ..attention import Layout
from ..config import Memory as MemoryConfig
from ..scoring import Decisions, find_leaves
from .factors import State, TemporaryFactors
from .split import SplitModel


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the conversation in a slot: what is computed, and the label to write in place of the recognised one.

    `said` are the places in the part whose logits tell the words that were said, and these words' ids.
    """

    slot: int
    part: Part
    said: tuple[list[int], list[int]]
    gold: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a turn: log p of every label, shape (labels,), and the losses of what was said and felt, in nats.

    `written` is whether the turn is part of a write, now or when its chunk is full; `undone` whether the write that
    ended with this turn diverged and was rolled back.
    """

    log_p: torch.Tensor
    semantics_loss: float
    emotion_loss: float
    written: bool
    undone: bool


def lay_out_turn(tree: TreeTokens, tokens: PieceTokenizer, branch: Sequence[int], slot: int, gold: int | None) -> Turn:
    """Lay out a tree of one branch: its question with all answers, and what was said once more, read causally.

    The words are read a second time because in the trunk they may see each other both ways.
    """
    before, words, begin = tree.said()
    leaves = find_leaves(tokens.answers.values(), tokens.choices)
    part = tree.lay_out([(tree.after(0), branch, leaves), (before, (), [tuple(words)])])
    last = part.asked[1][tuple(words)]
    places = list(range(last - len(words) + 1, last + 1))
    begin = max(begin, 1) if before == 0 else begin
    # A word is told by the token before it; before the first of the stretch stands the end of the utterance before.
    tellers = [places[place - 1] if place else before - 1 for place in range(begin, len(words))]
    return Turn(slot, part, (tellers, words[begin:]), gold)


@dataclass(frozen=True, slots=True)
class _Held:
    """A turn that waits to be written: what entered the upper layers, shape (tokens, hidden), and what it gave then.

    `sure` is the weight of its emotion: the probability that it had, or 1.
    """

    turn: Turn
    hidden: torch.Tensor
    label: int
    sure: float
    loss: float


class Writer:
    """Recognises and writes turns of many conversations at once, each in its slot.

    Answers of one conversation never depend on another: its factors are a row of their own, and its tokens see only
    themselves.
    """

    def __init__(self, model: Any, tokens: PieceTokenizer, settings: MemoryConfig, slots: int) -> None:
        self.settings = settings
        self._halves = SplitModel(model, settings.layers)
        self._answers: list[Leaf] = list(tokens.answers.values())
        self._choices = tokens.choices
        modules = find_modules(self._halves.upper_layers, settings.modules)
        adamw = settings.optimizer == "adamw"
        self.factors = TemporaryFactors(modules, slots=slots, rank=settings.rank, scale=settings.scale, adamw=adamw)
        # Of the turns that wait for their chunk to be full.
        self._gradients = torch.zeros(slots, self.factors.parameters, device=self.factors.device)
        self._held: list[list[_Held]] = [[] for _ in range(slots)]

    def forget(self, slot: int) -> None:
        """Begin a fresh memory in a slot."""
        self.factors.put([slot], None)
        self._drop([slot])

    def hold(self, turn: Turn, label: int, sure: float, loss: float, gradients: torch.Tensor) -> None:
        """Take up a turn again that waited to be written, with the gradients of all that wait in its slot."""
        with self._halves.open():
            hidden = self._halves.lower(Layout([turn.part], self.factors.device))
        self._held[turn.slot].append(_Held(turn, hidden[0], label, sure, loss))
        self._gradients[turn.slot] = gradients.to(self._gradients.device)

    def waiting(self, slot: int) -> tuple[list[tuple[int, float, float]], torch.Tensor]:
        """Return what `hold` takes of each turn that waits to be written, and the gradients of them all."""
        return [(held.label, held.sure, held.loss) for held in self._held[slot]], self._gradients[slot]

    def turn(self, turns: Sequence[Turn]) -> list[Outcome]:
        """Recognise a turn of each of some conversations, and write it or keep it until its chunk is full."""
        with self._halves.open(), self.factors.attached():
            return self._turn(turns)

    def _turn(self, turns: Sequence[Turn]) -> list[Outcome]:
        slots = [turn.slot for turn in turns]
        layout = Layout([turn.part for turn in turns], self.factors.device)
        hidden = self._halves.lower(layout)
        state = self.factors.look(slots)
        with torch.enable_grad(), self.factors.using(state.values, layout) as values:
            log_p, said = self._read(layout, hidden, turns)
            labels = [
                int(row.argmax()) if turn.gold is None else turn.gold for turn, row in zip(turns, log_p, strict=True)
            ]
            felt = -log_p[range(len(labels)), labels]
            sure = (-felt).detach().exp() if self.settings.by_confidence else torch.ones_like(felt).detach()
            losses = self._weigh(said, felt, sure)
            surprised = losses.detach() >= (inf if self.settings.content == "none" else self.settings.least_surprise)
            written = losses @ surprised.float() / self.settings.chunk
            # What nobody writes is not differentiated.
            gradients = torch.autograd.grad(written, values)[0] if surprised.any() else torch.zeros_like(values)
        if self.settings.chunk > 1:
            gradients += self._gradients[slots]
            self._gradients[slots] = gradients
        rows = hidden[0].split(layout.lengths)
        heard = zip(turns, rows, labels, sure.tolist(), losses.tolist(), strict=True)
        for one, keep in zip(heard, surprised.tolist(), strict=True):
            if keep:
                self._held[one[0].slot].append(_Held(*one))
        full = [place for place, slot in enumerate(slots) if len(self._held[slot]) == self.settings.chunk]
        if len(full) < len(slots):
            gradients = gradients[full]
        undone = self._write([slots[place] for place in full], gradients) if full else set()
        numbers = zip(slots, log_p.detach(), said.tolist(), felt.tolist(), surprised.tolist(), strict=True)
        return [Outcome(row, s, f, keep, slot in undone) for slot, row, s, f, keep in numbers]

    def _read(self, layout: Layout, hidden: torch.Tensor, turns: Sequence[Turn]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log p of the labels of each turn, (turns, labels), and the mean loss of its words, (turns,)."""
        decisions = Decisions(layout, [wanted for _ in turns for wanted in (self._answers, [])], self._choices)
        tellers = [start + place for turn, start in zip(turns, layout.starts, strict=True) for place in turn.said[0]]
        logits = self._halves.upper(layout, hidden, [*decisions.places, *tellers])
        answering, telling = logits.split([len(decisions.places), len(tellers)])
        log_p = decisions.score(answering).reshape(len(turns), -1)
        words = torch.tensor([word for turn in turns for word in turn.said[1]], device=logits.device)
        losses = cross_entropy(telling.float(), words, reduction="none")
        counts = [len(turn.said[1]) for turn in turns]
        return log_p, torch.stack([loss.mean() for loss in losses.split(counts)])

    def _weigh(self, said: torch.Tensor, felt: torch.Tensor, sure: torch.Tensor) -> torch.Tensor:
        """Return the loss of each turn, shape (turns,), from those of its words and of its emotion."""
        settings = self.settings
        semantics = settings.semantics_weight * (settings.content in ("semantics", "both"))
        emotion = settings.emotion_weight * (settings.content in ("emotion", "both"))
        return semantics * said + emotion * sure * felt

    def _write(self, slots: list[int], gradients: torch.Tensor) -> set[int]:
        """Write what some slots hold, with its gradients. Returns those where that diverged: they stay as they were.

        What cannot be brought to its end is written nowhere, and not tried again.
        """
        try:
            state, sound = self._step(slots, gradients)
            if not all(sound):
                kept = [place for place, well in enumerate(sound) if well]
                state = State(state.values[kept], state.moments[:, kept], state.steps[kept])
            self.factors.put([slot for slot, well in zip(slots, sound, strict=True) if well], state)
        finally:
            self._drop(slots)
        return {slot for slot, well in zip(slots, sound, strict=True) if not well}

    def _step(self, slots: list[int], gradients: torch.Tensor) -> tuple[State, list[bool]]:
        """Step down the loss of what some slots hold. Returns what they then remember, and whether that went well.

        As long as a step changes the loss little to first order, as its gradient has it, nothing else can raise it
        much; only where it changes it by half of what is allowed is the loss measured again.
        """
        settings, state = self.settings, self.factors.look(slots)
        rates = settings.rate / (1 + settings.damping * state.steps / settings.steps)
        if settings.decay:
            state = State((1 - settings.decay) * state.values, state.moments, state.steps)
        changes = torch.zeros_like(rates)
        for step in range(settings.steps):
            if step:
                _, gradients = self._measure(slots, state.values, differentiate=True)
            before, state = state.values, self.factors.step(state, gradients, rates)
            changes += torch.linalg.vecdot(gradients, before - state.values).abs()
        # Both written so that what is not a number went wrong too.
        sizes = torch.linalg.vector_norm(state.values, dim=1) / sqrt(self.factors.parameters)
        sound = sizes <= settings.largest_size
        doubtful = [place for place, change in enumerate(changes.tolist()) if not change <= settings.largest_rise / 2]
        if doubtful:
            asked = [slots[place] for place in doubtful]
            losses, _ = self._measure(asked, state.values[doubtful], differentiate=False)
            at_first = [sum(held.loss for held in self._held[slot]) / settings.chunk for slot in asked]
            sound[doubtful] &= losses - torch.tensor(at_first, device=losses.device) <= settings.largest_rise
        return state, sound.tolist()

    def _measure(
        self, slots: list[int], values: torch.Tensor, *, differentiate: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of what each slot holds, (slots,), and its gradients, (slots, parameters), if wanted.

        `values` are what the slots would remember.
        """
        held = [one for slot in slots for one in self._held[slot]]
        layout = Layout([one.turn.part for one in held], self.factors.device)
        hidden = torch.cat([one.hidden for one in held]).unsqueeze(0)
        with torch.set_grad_enabled(differentiate), self.factors.using(values, layout) as leaf:
            log_p, said = self._read(layout, hidden, [one.turn for one in held])
            felt = -log_p[range(len(held)), [one.label for one in held]]
            losses = self._weigh(said, felt, torch.tensor([one.sure for one in held], device=felt.device))
            means = losses.view(len(slots), -1).mean(dim=1)
            gradients = torch.autograd.grad(means.sum(), leaf)[0] if differentiate else torch.zeros(())
        return means.detach(), gradients

    def _drop(self, slots: Sequence[int]) -> None:
        if self.settings.chunk > 1:
            self._gradients[list(slots)] = 0
        for slot in slots:
            self._held[slot].clear()


def find_modules(layers: Sequence[Any], which: str) -> dict[str, Any]:
    """Return the linear modules of some layers by name: "all", or those of "attention" or "feed_forward" alone."""
    found: dict[str, Any] = {}
    for number, layer in enumerate(layers):
        inside: list[str] = []
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear | BaseTunerLayer) and not name.startswith(tuple(inside)):
                inside.append(f"{name}.")
                of = "attention" if "attn" in name or "attention" in name else "feed_forward"
                if which in ("all", of):
                    found[f"{number}.{name}"] = module
    return found
