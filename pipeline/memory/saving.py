"""A conversation on disk, to be taken up again: safetensors, with all that is no tensor as JSON in its header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...data.errors import DataError
from ...data.files import replace_atomically
from .factors import TemporaryFactors

FORMAT = "erckit conversation 2"


def save_conversation(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write both in place of what is there, at once or not at all."""
    header = {"format": FORMAT, "record": json.dumps(record, ensure_ascii=False)}
    with replace_atomically(path) as temporary:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary, metadata=header)


def read_conversation(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_conversation` wrote. Raises DataError where it is something else."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. Name one that `conversation.save` wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise DataError(f"{path}: no conversation that this version of erckit saved; begin a new one.")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["record"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path}: the file is broken ({error}); begin a new conversation.") from error


def export_adapter(folder: Path, model: Any, factors: TemporaryFactors, slot: int, base: str) -> None:
    """Write the factors of a slot as an adapter that plain PEFT loads beside the task adapter.

    PEFT adds up adapters that are active together: `model.load_adapter(folder, "memory")`, then
    `model.base_model.set_adapter(["default", "memory"])`.
    """
    from peft import LoraConfig

    names = {id(module): name.removeprefix("base_model.model.") for name, module in model.named_modules()}
    tensors: dict[str, torch.Tensor] = {}
    for module, a, b in factors.matrices(slot):
        tensors[f"base_model.model.{names[id(module)]}.lora_A.weight"] = a.contiguous().cpu()
        tensors[f"base_model.model.{names[id(module)]}.lora_B.weight"] = b.contiguous().cpu()
    settings = LoraConfig(
        r=factors.rank,
        lora_alpha=factors.rank * factors.scale,  # pyright: ignore[reportArgumentType]  # PEFT divides it by r
        target_modules=[names[id(module)] for module in factors.layers.values()],
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with replace_atomically(folder / "adapter_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    settings.save_pretrained(str(folder))
