"""Fine-tuning through TRL: the weighted loss over packed rows, dev answered as in prediction, the best kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset as ArrowDataset
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from ..prompts.tree import PromptTree, gold_emotions
from .checkpoints import locate_checkpoint, name_failed_writes, seal_checkpoint
from .console import progress, say
from .divergence import stop_diverged
from .epochs import Row, TrainingPrompts
from .loss import weighted_mean
from .measure import release_memory
from .metrics import confusion_matrix, weighted_f1
from .scoring import answer_log_likelihoods, answer_trees

# Dev conversations that are answered together at every look at dev.
DEV_CONVERSATIONS = 32


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
        row_tokens: int,
        oracle: bool,
    ) -> None:
        self.prompts, self.weights, self.dev, self.mixed_precision = prompts, weights, dev, mixed_precision
        self.row_tokens, self.gold = row_tokens, gold_emotions(dev) if oracle else None
        self.batch: list[tuple[Row, torch.Tensor]] = []  # of this optimiser step, with the losses of each row
        rows = ArrowDataset.from_dict({"place": list(range(len(prompts)))})
        super().__init__(
            model=model,
            args=args,
            processing_class=prompts.tokens.tokenizer,
            train_dataset=rows,
            eval_dataset=rows.select([0]),  # never read: `evaluate` answers the dev trees
            data_collator=self.collate,
            callbacks=[
                EarlyStoppingCallback(patience),
                _EpochStart(prompts),
                _Checkpoints(),
                _Divergence(self),
                _Housekeeping(),
            ],
        )
        self.remove_callback(PrinterCallback)  # log.jsonl holds it all

    def collate(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """Return a row of the epoch, and the weight of each of its examples, shape (examples,)."""
        (place,) = rows
        row = self.prompts.row(place["place"])
        return {"row": row, "weights": torch.tensor([self.weights[label] for label in row.labels])}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        row, weights = inputs["row"], inputs["weights"]
        answers = [[answer] for answer in row.answers]
        losses = -answer_log_likelihoods(model, row.parts, answers, self.prompts.tokens.choices)
        self.batch.append((row, losses.detach()))
        if not losses.isfinite().all():
            stop_diverged(self.folder, "loss", self.state, self.batch)
        total = num_items_in_batch if num_items_in_batch is not None else weights.sum()
        # The total is that of all processes, over which the gradients are averaged afterwards.
        return weighted_mean(losses, weights, total) * self.accelerator.num_processes

    @property
    def folder(self) -> Path:
        """The folder of the stage."""
        return Path(str(self.args.output_dir)).parent

    def compute_loss_context_manager(self) -> Any:
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=self.mixed_precision)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Return the sum of weights over all forward passes of the optimiser step, on all devices."""
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        gathered: Any = self.accelerator.gather(total)
        return gathered.sum()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = locate_checkpoint(str(self.args.output_dir), self.state.global_step)
        with name_failed_writes(folder):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes the state of its random numbers
        if self.is_world_process_zero():
            seal_checkpoint(folder)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(range(len(self.prompts)))  # the rows of an epoch are drawn by `TrainingPrompts`

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, Any]:
        """Answer dev as prediction would, and log W-F1 and the confusion matrix."""
        labels, prompts = self.prompts.labels, self.prompts
        model: Any = self.model
        was_training = model.training
        model.eval()
        answers = [
            answer
            for answer in answer_trees(
                model,
                prompts.tokens,
                prompts.wording,
                self.dev,
                both_ways=prompts.both_ways,
                conversations=DEV_CONVERSATIONS,
                row_tokens=self.row_tokens,
                gold=self.gold,
                total=sum(len(tree.branches) for tree in self.dev),
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
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        trained = f", loss {losses[-1]:.3f}" if losses else ""
        say(f"  epoch {self.state.epoch or 0:.2f}{trained}: dev W-F1 {metrics[f'{metric_key_prefix}_w_f1']:.2f}")
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


class _Checkpoints(TrainerCallback):
    """Ends a stretch of the log at every checkpoint, where a resumed run begins to average anew."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run names the place where the best checkpoint was; the run folder may have moved since.
        if state.best_global_step:
            state.best_model_checkpoint = str(locate_checkpoint(args.output_dir, state.best_global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = control.should_log or control.should_save

    on_epoch_end = on_step_end


class _Divergence(TrainerCallback):
    """Stops training before a gradient that is not finite spoils the weights."""

    def __init__(self, trainer: ErcTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.batch.clear()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.fp16:
            return  # its loss is scaled, and a step whose gradient overflows is left out
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            stop_diverged(self.trainer.folder, "gradient", state, self.trainer.batch)


class _Housekeeping(TrainerCallback):
    """Shows how many optimiser steps are done, in the way of all of erckit's progress, and keeps memory flat."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = progress(steps := range(state.global_step, state.max_steps), len(steps), "training steps")
        next(self.steps, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(self.steps, None)
        if state.global_step % 10 == 0 or control.should_evaluate:
            release_memory()
