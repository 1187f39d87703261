"""The language model under everything: the embedded one, or any causal LLM of the hub or a folder."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.errors import DataError
from ..retrieval.encoder import EMBEDDED, embedded_model_path
from .config import ConfigError
from .config import Model as ModelConfig
from .console import say

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

# The embedded model's head has no pre-trained transform. This one starts as the identity: a bias that GELU passes
# unchanged and that the LayerNorm takes out again, with small logits so that learning starts near a uniform answer.
HEAD_SHIFT, HEAD_SCALE = 6.0, 0.3
EMBEDDED_HEAD = "transform"
# What decides what a model folder computes, and how much of each file is read to tell it from others.
MODEL_FILES = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja"}
SAMPLES, SAMPLE_BYTES = 64, 1 << 16


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """Load the tokenizer; nothing is padded here, but TRL asks for a token to do it with."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(locate(config.name), **_source(config))
    except (OSError, ValueError) as error:
        raise _not_loaded(config, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig) -> "PreTrainedModel":
    """Load the language model in the dtype and on the device that the config asks for, with the packed attention.

    Raises ConfigError where a 4-bit model is asked for and no CUDA device is there, DataError where it is not found or
    cannot take packed prompts.
    """
    from transformers import AutoModelForCausalLM

    from .attention import use_packed_attention

    device = choose_device(config)
    options: dict[str, Any] = {"dtype": choose_dtype(config)}
    if config.quantization == "nf4":
        _require_cuda(device)
        options |= {"quantization_config": quantization(config), "device_map": {"": device}}
    try:
        architecture = _load_architecture(config)
        if config.name == EMBEDDED:
            architecture.update({"is_decoder": True, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0})
        _stop_attention_dropout(architecture)
        model: Any = AutoModelForCausalLM.from_pretrained(
            locate(config.name), config=architecture, **_source(config), **options
        )
    except (OSError, ValueError) as error:
        raise _not_loaded(config, error) from error
    if config.name == EMBEDDED:
        _start_head_as_identity(model)
    model.config.name_or_path = config.name
    if config.quantization == "nf4":
        from peft import prepare_model_for_kbit_training

        # For prediction too: what it turns into float32 would answer otherwise in bfloat16.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    else:
        model = model.to(device)
    use_packed_attention(model)
    return model


def quantization(config: ModelConfig) -> "BitsAndBytesConfig":
    """Return the QLoRA recipe (arXiv 2305.14314): 4-bit NormalFloat, double quantisation."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=choose_dtype(config),
    )


def lora(config: ModelConfig, *, rank: int, alpha: int, dropout: float) -> "LoraConfig":
    """Return the settings of the task adapter: all linear layers, and for the embedded model its head as a whole."""
    from peft import LoraConfig

    head = {"modules_to_save": [EMBEDDED_HEAD], "exclude_modules": r".*transform\.dense"}
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        **(head if config.name == EMBEDDED else {}),
    )


def choose_device(config: ModelConfig) -> str:
    import torch

    if config.device == "cuda":
        _require_cuda("cuda" if torch.cuda.is_available() else "cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device


def choose_dtype(config: ModelConfig) -> "torch.dtype":
    """Return the dtype of the weights: with "auto", bfloat16 on a GPU that has it, float32 elsewhere."""
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    on_gpu = choose_device(config) == "cuda"
    return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32


def choose_stored_dtype(config: ModelConfig) -> "torch.dtype":
    """Return the dtype in which weights are given away: with "auto", that of the model's own files."""
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    return _load_architecture(config).dtype or torch.float32


def mixes_precision(config: ModelConfig) -> bool:
    """Whether training multiplies in bfloat16 where that is safe (autocast): with "auto" where the device has it.

    The weights keep their dtype, and so does prediction: on a CPU both stay float32.
    """
    import torch

    if config.dtype == "auto" and choose_device(config) == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return choose_dtype(config) == torch.bfloat16


def fingerprint(config: ModelConfig) -> str:
    """SHA-256 of what identifies a model: the files of a folder, else its name and revision on the hub.

    Of a large file its size and samples over its whole length count: other weights differ everywhere.
    """
    folder = Path(locate(config.name))
    if not folder.is_dir():
        return fingerprint_name(config.name, config.revision)
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix in MODEL_FILES:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                for start in range(0, file.stat().st_size, max(SAMPLE_BYTES, file.stat().st_size // SAMPLES)):
                    stream.seek(start)
                    digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def fingerprint_name(name: str, revision: str | None) -> str:
    """Return the `fingerprint` of a model on the hub."""
    return hashlib.sha256(f"{name}@{revision or 'main'}".encode()).hexdigest()


def precision(config: ModelConfig) -> str:
    """Return in words on what a model runs, and in which number formats; for records."""
    dtype = str(choose_dtype(config)).removeprefix("torch.")
    multiplied = ", multiplied in bfloat16 in training" if mixes_precision(config) and dtype == "float32" else ""
    return f"{choose_device(config)}, {dtype}{multiplied}" + (
        f", {config.quantization} base" if config.quantization != "none" else ""
    )


def check_positions(config: ModelConfig, max_tokens: int) -> None:
    """Raise ConfigError where prompts may be longer than the model has positions."""
    positions = getattr(_load_architecture(config), "max_position_embeddings", None)
    if positions is not None and max_tokens > positions:
        raise ConfigError(
            f"prompts.max_tokens is {max_tokens:,}, and model {config.name!r} has {positions:,} positions. "
            f"Set prompts.max_tokens to {positions:,} at most."
        )


def _load_architecture(config: ModelConfig) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(locate(config.name), **_source(config))
    except (OSError, ValueError) as error:
        raise _not_loaded(config, error) from error


def name_for_readers(config: ModelConfig) -> str:
    """Return a model's name for pages that others read: of a folder its last part, as the rest is of this machine."""
    if config.name == EMBEDDED:
        return "all-MiniLM-L6-v2 (embedded)"
    return Path(config.name).name if Path(config.name).is_dir() else config.name


def locate(name: str) -> str:
    return str(embedded_model_path()) if name == EMBEDDED else name


def _start_head_as_identity(model: "PreTrainedModel") -> None:
    import torch

    head: Any = model.get_submodule("cls.predictions")
    with torch.no_grad():
        torch.nn.init.eye_(head.transform.dense.weight)
        head.transform.dense.bias.fill_(HEAD_SHIFT)
        head.transform.LayerNorm.weight.fill_(HEAD_SCALE)
        head.transform.LayerNorm.bias.zero_()
        head.decoder.bias.zero_()


def _stop_attention_dropout(architecture: Any) -> None:
    """Attention that drops out leaves the fast kernels: several times slower on a CPU, and FlexAttention has none."""
    for name in ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"):
        if share := getattr(architecture, name, 0.0):
            setattr(architecture, name, 0.0)
            say(f"  note: the model's attention dropout of {share} is off: packed attention has none.")


def _source(config: ModelConfig) -> dict[str, Any]:
    return {"revision": config.revision or "main", "trust_remote_code": config.trust_remote_code}


def _require_cuda(device: str) -> None:
    if device != "cuda":
        raise ConfigError(
            "model.quantization and model.device ask for a CUDA device, and none is here. Run on a machine with an "
            "NVIDIA GPU, or set `model.quantization: none` and `model.device: auto`."
        )


def _not_loaded(config: ModelConfig, error: Exception) -> DataError:
    if "trust_remote_code" in str(error):
        return DataError(
            f"model {config.name!r} brings code of its own, which was not run. Where you trust that code, set "
            "`model.trust_remote_code: true`; it is run with all that you may do on this machine."
        )
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    where = "this folder" if Path(config.name).exists() else "the hub"
    return DataError(
        f"model {config.name!r} cannot be loaded from {where} ({reason}). Expected 'embedded', a folder, or a name "
        "on the hub. Check the spelling; gated models need a login; without a network, download the model beforehand."
    )
