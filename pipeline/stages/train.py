"""Train: LoRA on the language model through TRL; the adapter with the best dev W-F1 is kept."""

import gc
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from ...data.errors import DataError
from ...data.files import write_json_lines
from ...prompts.tokens import PieceTokenizer
from .. import backbone
from ..adapter import save_adapter
from ..artefacts import load_labels, load_trees, load_wording
from ..backbone import choose_device, choose_dtype, load_model, load_tokenizer, lora, mixes_precision
from ..checkpoints import find_checkpoint
from ..config import Config
from ..divergence import DIVERGED
from ..loss import class_weights
from ..processes import count_processes, is_helper
from ..run import Run

if TYPE_CHECKING:
    from trl.trainer.sft_config import SFTConfig

    from ..training import ErcTrainer

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def fingerprint(config: Config) -> str:
    """The base model decides too, whatever folder it comes from."""
    return backbone.fingerprint(config.model)


def run(config: Config, run: Run) -> str:
    run.path("train", DIVERGED).unlink(missing_ok=True)  # of an earlier attempt
    trainer = build_trainer(config, run)
    checkpoint = find_checkpoint(run.path("train", "checkpoints"))
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except UnpicklingError as error:  # transformers takes numbers alone from a checkpoint, never objects
        raise DataError(
            f"{checkpoint}: not a checkpoint that erckit wrote ({str(error).splitlines()[0]}). Remove the folder "
            f"{run.path('train', 'checkpoints')}, and the same command trains anew."
        ) from error
    best, step = trainer.state.best_metric, trainer.state.best_global_step
    summary = f"adapter with dev W-F1 {best:.2f}, from step {step:,}, on {backbone.precision(config.model)}"
    if is_helper():
        return summary
    save_adapter(trainer.model, run.path("train", "adapter"), config, trainer.prompts.labels, trainer.prompts.wording)
    # The entry of how fast it went is left out: the manifest says that, and the log can be made again. A resumed
    # training has the keys of the entries before it sorted, so all are.
    log = [dict(sorted(entry.items())) for entry in trainer.state.log_history if "train_runtime" not in entry]
    write_json_lines(run.path("train", "log.jsonl"), log)
    del trainer
    gc.collect()  # a trainer and its model refer to one another, and would count for the next stage
    return summary


def build_trainer(config: Config, run: Run) -> "ErcTrainer":
    """Return the trainer of the run's prompts, its model with a fresh task adapter."""
    from peft import get_peft_model
    from transformers import set_seed

    from ..epochs import Batches, TrainingPrompts
    from ..training import ErcTrainer

    settings, labels, wording = config.train, load_labels(run), load_wording(run)
    prompts = TrainingPrompts(
        trees=list(load_trees(run, "train", wording)),
        labels=labels,
        tokens=PieceTokenizer(load_tokenizer(config.model), labels, wording, chat=config.prompts.chat),
        wording=wording,
        both_ways=config.model.both_ways,
        batches=Batches(settings.batch_size, settings.together, settings.row_tokens, processes=count_processes()),
        noise=settings.recent_noise,
        seed=config.seed,
    )
    prompts.prove()
    weights = class_weights(settings.class_weights, prompts.counts, settings.effective_number_beta)
    set_seed(config.seed)  # LoRA starts at random
    model = load_model(config.model)
    if settings.gradient_checkpointing:
        model.enable_input_require_grads()  # else the first checkpoint has nothing to pass gradients to
    model = get_peft_model(
        model, lora(config.model, rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=settings.lora_dropout)
    )
    arguments = build_arguments(config, run, rows=len(prompts), rows_per_step=prompts.rows_per_step)
    return ErcTrainer(
        model=model,
        args=arguments,
        prompts=prompts,
        weights=weights,
        dev=list(load_trees(run, "dev", wording)),
        patience=settings.patience,
        mixed_precision=mixes_precision(config.model),
        row_tokens=settings.row_tokens,
        oracle=config.prompts.recent_emotions == "gold",
    )


def build_arguments(config: Config, run: Run, rows: int, rows_per_step: int) -> "SFTConfig":
    """Return TRL's settings for epochs of so many rows, so many of them an optimiser step over all processes."""
    import torch
    from trl.trainer.sft_config import SFTConfig

    settings = config.train
    steps = rows // rows_per_step
    when: dict[str, Any] = {"strategy": "epoch"}
    if settings.evaluations_per_epoch > 1:
        when = {"strategy": "steps", "steps": max(1, steps // settings.evaluations_per_epoch)}
    return SFTConfig(
        output_dir=str(run.path("train", "checkpoints")),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        warmup_steps=round(settings.warmup_share * steps * settings.epochs),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_gradient_norm,
        per_device_train_batch_size=1,  # a row, which holds many examples
        gradient_accumulation_steps=rows_per_step // count_processes(),
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=False,  # the trainer does it, around the loss alone: dev is answered as in prediction
        fp16=choose_dtype(config.model) == torch.float16,
        use_cpu=choose_device(config.model) == "cpu",
        # A checkpoint at every look at dev, so that the best one is there to load.
        **{f"{what}_{key}": value for what in ("eval", "save") for key, value in when.items()},
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,  # patience goes on counting in a resumed run
        load_best_model_at_end=True,
        metric_for_best_model="eval_w_f1",
        greater_is_better=True,
        logging_steps=max(1, steps // 20),
        seed=config.seed,
        report_to=list(settings.report_to),
        disable_tqdm=True,
        # The trees are worded, tokenised and packed by the trainer's own collator; nothing may cut them afterwards.
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
