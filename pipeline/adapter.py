"""The task adapter: a PEFT folder that plain `peft` loads, with what it was made for beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .. import __version__
from ..data.errors import DataError
from ..data.files import hash_file, read_sealed, write_sealed
from ..data.labels import LabelSet
from ..prompts.wording import Wording
from .artefacts import load_labels, require_unchanged
from .backbone import fingerprint, precision
from .checkpoints import name_failed_writes
from .config import Config, Data, Model, Prompts, load_config
from .console import say
from .run import Run

CARD = "erckit.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Found:
    """A task adapter with the settings and labels that go with it; `config.prompts.template` is its wording.

    `folder` is where it lies, `run` the run that made or used it, None for one by itself. `merged`: the folder holds
    a whole model, into which the adapter was merged, and `config.model` is that.
    """

    config: Config
    labels: LabelSet
    folder: Path
    run: Run | None = None
    merged: bool = False


def find_adapter(path: str | Path, seed: int | None = None, *, trust_remote_code: bool = False) -> Found:
    """Find the adapter of a run (where it has several seeds, that of `seed`), or the one in a folder by itself.

    Code that comes with a model is run only with `trust_remote_code`, whatever the folder says: it may be somebody
    else's. Raises DataError where `path` is neither, nor a model that erckit merged, or was changed since erckit wrote
    it.
    """
    folder = Path(path)
    if (folder / CARD).is_file():
        return _find_by_card(folder, trust_remote_code)
    if not (folder / "config.yaml").is_file():
        raise DataError(
            f"{folder}: neither a run (it has no config.yaml) nor an adapter that erckit made (it has no {CARD}). "
            "Name the folder of one of them, such as runs/sample."
        )
    config = load_config(str(folder / "config.yaml"), seed=seed)
    run = Run(folder, config.seed)
    if config.model.trust_remote_code and not trust_remote_code:
        raise DataError(
            f"{folder / 'config.yaml'}: its model brings code of its own (model.trust_remote_code). Where you trust "
            "that code, say --trust-remote-code, in Python trust_remote_code=True."
        )
    require_unchanged(config, run)
    prompts = config.prompts.model_copy(update={"template": str(run.path("prompts", "wording"))})
    adapter = Path(config.predict.adapter) if config.predict.adapter else run.path("train", "adapter")
    return Found(config.model_copy(update={"prompts": prompts}), load_labels(run), adapter, run)


def _find_by_card(folder: Path, trust_remote_code: bool) -> Found:
    card = read_card(folder)
    try:
        merged = card.get("merged", False)
        name, revision = (str(folder), None) if merged else (card["base_model"], card["revision"])
        prompts = Prompts(**card["protocol"] | {"template": str(folder / "wording")})
        model = Model(name=name, revision=revision, attention=card["attention"], trust_remote_code=trust_remote_code)
        config = Config(name="adapter", data=Data(path="none"), model=model, prompts=prompts)
        labels = LabelSet(tuple(card["labels"]))
    except (KeyError, TypeError, ValidationError) as error:
        reason = str(error).replace("\n", " ")
        raise DataError(
            f"{folder / CARD}: not written by this version of erckit ({reason}). Train the adapter again."
        ) from error
    if merged:
        _require_files(folder, card)
    return Found(config, labels, folder, merged=merged)


def save_adapter(model: Any, folder: Path, config: Config, labels: LabelSet, wording: Wording) -> None:
    """Write adapter_model.safetensors and adapter_config.json, the wording, and erckit.json: what it was made for."""
    # Not the folder it was loaded from, which another machine does not have.
    model.active_peft_config.base_model_name_or_path = config.model.name
    # Embeddings are never trained; to find that out by itself, PEFT would ask the hub.
    with name_failed_writes(folder):
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty card says nothing
    wording.write(folder / "wording")
    card = {
        "erckit": __version__,
        "base_model": config.model.name,
        "attention": config.model.attention,
        "revision": config.model.revision,
        "base_fingerprint": fingerprint(config.model),
        "made_on": precision(config.model),
        "labels": list(labels),
        "wording": wording.hash,
        "protocol": config.prompts.model_dump(mode="json"),
        "seed": config.seed,
        "sha256": {name: hash_file(folder / name) for name in (CONFIG, WEIGHTS)},
    }
    write_sealed(folder / CARD, card)


def read_card(folder: Path) -> dict[str, Any]:
    """Return what an adapter was made for. Raises DataError where there is none of erckit's, or it was changed."""
    if not (folder / CARD).is_file():
        raise DataError(
            f"{folder / CARD}: missing, so this is no adapter that erckit made. Train one, or name its folder."
        )
    return read_sealed(folder / CARD, "Copy the adapter's folder again, or train again.")


def load_adapter(model: Any, folder: Path, config: Config, labels: LabelSet, wording: Wording) -> Any:
    """Lay the adapter over its base model, in evaluation mode, nothing of it trainable.

    Raises DataError where it was made for another base model, label set or wording, is no adapter of erckit's, or was
    changed since erckit wrote it. It is read from safetensors alone: nothing is ever unpickled.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    card = read_card(folder)
    # A model is what it computes: the same files elsewhere are the same model, other files of its name are not.
    if card.get("base_fingerprint") != fingerprint(config.model):
        raise DataError(
            f"{folder}: the adapter was made for base_model {card.get('base_model')!r}, whose files are others than "
            f"those of {config.model.name!r} here. Set `model.name` to the adapter's base model, in the same form (hub "
            "name or folder), or train an adapter for this one."
        )
    expected = {"labels": list(labels), "wording": wording.hash, "attention": config.model.attention}
    remedies = {
        "labels": "Labels and their order must be those of the corpus; train an adapter for this corpus.",
        "wording": "Set `prompts.template` to the adapter's wording (its folder `wording`), or train again.",
        "attention": "Set `model.attention` to the adapter's, or train again.",
    }
    for key, value in expected.items():
        if card.get(key) != value:
            raise DataError(
                f"{folder}: the adapter was made for {key} {card.get(key)!r}, expected {value!r}. {remedies[key]}"
            )
    _require_files(folder, card)
    for key, value in config.prompts.model_dump(mode="json", exclude={"template"}).items():
        trained = card["protocol"].get(key)
        if trained != value:
            say(f"  note: the adapter was trained with prompts.{key} {trained!r}, and is asked with {value!r}")
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise DataError(
            f"{folder}: the adapter cannot be loaded ({reason}). Copy its folder again, or train again."
        ) from error


def _require_files(folder: Path, card: dict[str, Any]) -> None:
    """Raise DataError where a file that a card tells of is missing or was changed."""
    for name, digest in card["sha256"].items():
        if not (folder / name).is_file() or hash_file(folder / name) != digest:
            fate = "changed since erckit wrote it" if (folder / name).is_file() else "missing"
            raise DataError(f"{folder / name}: {fate}. Copy its folder again, or make it again.")
