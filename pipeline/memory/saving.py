"""A conversation on disk, to be taken up again: safetensors, with all that is no tensor as JSON in its header."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ...data.errors import DataError
from ...data.files import name_errors, replace_atomically
from .factors import TemporaryFactors

FORMAT = "erckit conversation 3"


def save_conversation(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write both in place of what is there, at once or not at all."""
    text = json.dumps(record, ensure_ascii=False)
    kept = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "record": text, "sha256": _hash_content(kept, text)}
    with replace_atomically(path) as temporary:
        temporary.write_bytes(save(kept, metadata=header))


def read_conversation(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_conversation` wrote. Raises DataError where it is something else."""
    if not path.is_file():
        raise DataError(f"{path}: no such file. Name one that `conversation.save` wrote.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise DataError(f"{path}: no conversation that this version of erckit saved; begin a new one.")
            tensors, text = {name: file.get_tensor(name) for name in file.keys()}, header["record"]
        if header["sha256"] != _hash_content(tensors, text):
            raise DataError(f"{path}: its content is not what erckit wrote there; begin a new conversation.")
        return tensors, json.loads(text)
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{path}: the file is broken ({error}); begin a new conversation.") from error


def _hash_content(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    with replace_atomically(folder / "adapter_model.safetensors") as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt"}))
    with name_errors(folder / "adapter_config.json"):
        settings.save_pretrained(str(folder))
