"""Fine-tuning through TRL: the weighted loss, prompts worded anew each epoch, the best checkpoint by dev W-F1."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset as ArrowDataset
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ..data.labels import LabelSet
from ..prompts.tokens import PieceTokenizer
from ..prompts.tree import Branch, PromptTree, gold_emotions, unroll
from ..prompts.wording import Wording
from .console import progress
from .loss import confusion_errors, weighted_mean
from .measure import release_memory
from .metrics import confusion_matrix, weighted_f1
from .scoring import answer_log_likelihoods, answer_trees, pad_left


@dataclass
class TrainingPrompts:
    """The training examples, worded anew for each epoch: some gold recent emotions give way to errors of the model.

    `noise` is the share replaced, so that training resembles inference, where recent emotions are the model's own.
    The draw depends on seed, epoch, example and the last look at dev before the epoch, whose `confusion` it follows,
    so that a resumed run sees the same prompts.
    """

    trees: Sequence[PromptTree]
    labels: LabelSet
    tokens: PieceTokenizer
    wording: Wording
    noise: float
    seed: int
    examples: list[tuple[PromptTree, Branch]] = field(init=False)

    def __post_init__(self) -> None:
        self.examples = [(tree, branch) for tree in self.trees for branch in tree.branches if branch.label is not None]
        self._gold = gold_emotions(self.trees)
        self.start_epoch(0, None)

    def start_epoch(self, epoch: int, confusion: Sequence[Sequence[int]] | None) -> None:
        self._epoch = epoch
        self._errors = confusion_errors(confusion, list(self.counts.values()))

    @property
    def counts(self) -> dict[str, int]:
        """The training examples of each label, in order."""
        found = Counter(branch.label for _, branch in self.examples)
        return {label: found[label] for label in self.labels}

    def word(self, place: int) -> tuple[list[int], tuple[int, ...], str]:
        """Return the token ids of one example with its answer, the answer's ids, and the label, in this epoch."""
        tree, branch = self.examples[place]
        assert branch.label is not None
        prompt = unroll(tree, branch, self._told(place, tree, branch), self.wording)
        ids, answer = self.tokens.example(prompt, branch.label)
        return ids, answer, branch.label

    def _told(self, place: int, tree: PromptTree, branch: Branch) -> dict[int, str]:
        gold = self._gold[tree.dialogue]
        generator = np.random.default_rng([self.seed, self._epoch, place])
        told = {}
        for turn in branch.recent:
            if turn in gold:
                wrong = generator.random() < self.noise
                errors = self._errors[self.labels.index(gold[turn])]
                told[turn] = self.labels.names[generator.choice(len(self.labels), p=errors)] if wrong else gold[turn]
        return told


class LengthGroups(Sampler[int]):
    """Every example once an epoch, at random, neighbours alike in length; the order depends on seed and epoch alone."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        pools = np.split(order, range(50 * self.batch_size, len(order), 50 * self.batch_size))
        ordered = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        batches = np.split(ordered, range(self.batch_size, len(ordered), self.batch_size))
        # The one batch that may be short stays last: a sampler hands on examples, and cuts would shift behind it.
        shuffled = [batches[place] for place in generator.permutation(len(batches) - 1)]
        return iter(np.concatenate([*shuffled, batches[-1]]).tolist())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class ErcTrainer(SFTTrainer):
    """TRL's trainer with the class-weighted closed-set loss, and with dev answered as in prediction."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        prompts: TrainingPrompts,
        weights: Mapping[str, float],
        dev: Sequence[PromptTree],
        patience: int,
        mixed_precision: bool,
    ) -> None:
        self.prompts, self.weights, self.dev, self.mixed_precision = prompts, weights, dev, mixed_precision
        rows = ArrowDataset.from_dict({"place": list(range(len(prompts.examples)))})
        super().__init__(
            model=model,
            args=args,
            processing_class=prompts.tokens.tokenizer,
            train_dataset=rows,
            eval_dataset=rows.select([0]),  # never read: `evaluate` answers the dev trees
            data_collator=self.collate,
            callbacks=[EarlyStoppingCallback(patience), _EpochStart(prompts), _CheckpointLog(), _Housekeeping()],
        )
        self.remove_callback(PrinterCallback)  # log.jsonl holds it all

    def collate(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """Return a batch: padded inputs, `answers` (the ids of each row's answer) and `weights`, shape (rows,)."""
        worded = [self.prompts.word(row["place"]) for row in rows]
        return {
            **pad_left([ids for ids, _, _ in worded], self.prompts.tokens.pad),
            "answers": [answer for _, answer, _ in worded],
            "weights": torch.tensor([self.weights[label] for _, _, label in worded]),
        }

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        answers, weights = inputs.pop("answers"), inputs.pop("weights")
        losses = -answer_log_likelihoods(model, inputs, answers, self.prompts.tokens.choices)
        total = num_items_in_batch if num_items_in_batch is not None else weights.sum()
        # The total is that of all processes, over which the gradients are averaged afterwards.
        return weighted_mean(losses, weights, total) * self.accelerator.num_processes

    def compute_loss_context_manager(self) -> Any:
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=self.mixed_precision)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Return the sum of weights over all forward passes of the optimiser step, on all devices."""
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        gathered: Any = self.accelerator.gather(total)
        return gathered.sum()

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroups:
        lengths = [len(self.prompts.word(place)[0]) for place in range(len(self.prompts.examples))]
        return LengthGroups(lengths, self.args.per_device_train_batch_size, self.args.seed)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, Any]:
        """Answer dev as prediction would, recent emotions predicted, and log W-F1 and the confusion matrix."""
        labels, prompts = self.prompts.labels, self.prompts
        model: Any = self.model
        was_training = model.training
        model.eval()
        answers = [
            answer
            for answer in answer_trees(
                model, prompts.tokens, prompts.wording, self.dev, batch_size=self.args.eval_batch_size
            )
            if answer.branch.label is not None
        ]
        model.train(was_training)
        gold = [labels.index(str(answer.branch.label)) for answer in answers]
        confusion = confusion_matrix(gold, [labels.index(answer.label) for answer in answers], len(labels))
        metrics = {
            f"{metric_key_prefix}_w_f1": float(weighted_f1(confusion)),
            f"{metric_key_prefix}_confusion": confusion.tolist(),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _EpochStart(TrainerCallback):
    """Words the prompts of each epoch with the confusion seen at the last look at dev before it."""

    def __init__(self, prompts: TrainingPrompts) -> None:
        self.prompts = prompts

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = int(state.epoch or 0)
        # From the log, which checkpoints keep: a resumed run words the epoch in the same way.
        looks = [entry for entry in state.log_history if "eval_confusion" in entry and entry["epoch"] <= epoch]
        self.prompts.start_epoch(epoch, looks[-1]["eval_confusion"] if looks else None)


class _CheckpointLog(TrainerCallback):
    """Ends a stretch of the log at every checkpoint, where a resumed run begins to average anew."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_log or control.should_save

    on_epoch_end = on_step_end


class _Housekeeping(TrainerCallback):
    """Shows how many optimiser steps are done, in the way of all of erckit's progress, and keeps memory flat."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = progress(steps := range(state.global_step, state.max_steps), len(steps), "training steps")
        next(self.steps, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(self.steps, None)
        if state.global_step % 10 == 0 or control.should_evaluate:
            release_memory()
