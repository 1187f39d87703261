"""Training that no longer computes numbers: it stops, and what it computed last is kept to be looked at."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..data.errors import DataError
from ..data.files import write_json
from ..prompts.packing import unpack
from .epochs import Row

if TYPE_CHECKING:
    import torch

DIVERGED = "diverged.json"


def stop_diverged(folder: Path, what: str, state: Any, batch: "Sequence[tuple[Row, torch.Tensor]]") -> NoReturn:
    """Write the rows of the optimiser step, with the losses of each, into `folder`, and raise DataError.

    `what` is not finite, the "loss" or the "gradient"; `state` is that of the trainer.
    """
    examples = [example for row, losses in batch for example in _describe(row, losses.tolist())]
    step, path = state.global_step + 1, folder / DIVERGED
    write_json(path, {"step": step, "epoch": state.epoch, "not_finite": what, "examples": examples})
    wrong = [example for example in examples if isinstance(example["loss"], str)] or examples
    raise DataError(
        f"{path}: at optimiser step {step:,} the {what} is not finite; the batch is in this file. "
        f"Look first at the utterance {wrong[0]['utterance']!r} of dialogue {wrong[0]['dialogue']!r}. Lower "
        "`train.learning_rate`, or have `model.dtype` float32."
    )


def _describe(row: Row, losses: Sequence[float]) -> list[dict[str, Any]]:
    """Return each example: its ids, label, loss (as text where it is not finite), and prompt with answer as tokens."""
    branches = [(part, branch) for part in row.parts for branch in range(len(part.asked))]
    return [
        {
            "dialogue": dialogue,
            "utterance": utterance,
            "label": label,
            "loss": loss if math.isfinite(loss) else str(loss),
            "tokens": [*unpack(part, branch), *answer],
        }
        for (part, branch), (dialogue, utterance), label, answer, loss in zip(
            branches, row.asked, row.labels, row.answers, losses, strict=True
        )
    ]
