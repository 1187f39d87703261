"""The task adapter: a PEFT folder that plain `peft` loads, with what it was made for beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .. import __version__
from ..data.errors import DataError
from ..data.files import read_json, write_json
from ..data.labels import LabelSet
from ..prompts.wording import Wording
from .artefacts import load_labels
from .backbone import fingerprint, precision
from .config import Config, Data, Model, Prompts, load_config
from .console import say
from .run import Run

CARD, WEIGHTS = "erckit.json", "adapter_model.safetensors"


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


def find_adapter(path: str | Path, seed: int | None = None) -> Found:
    """Find the adapter of a run (where it has several seeds, that of `seed`), or the one in a folder by itself.

    Raises DataError where `path` is neither, nor a model that erckit merged.
    """
    folder = Path(path)
    if (folder / CARD).is_file():
        return _read_card(folder)
    if not (folder / "config.yaml").is_file():
        raise DataError(
            f"{folder}: neither a run (it has no config.yaml) nor an adapter that erckit made (it has no {CARD}). "
            "Name the folder of one of them, such as runs/sample."
        )
    config = load_config(str(folder / "config.yaml"), seed=seed)
    run = Run(folder, config.seed)
    prompts = config.prompts.model_copy(update={"template": str(run.path("prompts", "wording"))})
    adapter = Path(config.predict.adapter) if config.predict.adapter else run.path("train", "adapter")
    return Found(config.model_copy(update={"prompts": prompts}), load_labels(run), adapter, run)


def _read_card(folder: Path) -> Found:
    card = read_json(folder / CARD)
    try:
        merged = card.get("merged", False)
        name, revision = (str(folder), None) if merged else (card["base_model"], card["revision"])
        prompts = Prompts(**card["protocol"] | {"template": str(folder / "wording")})
        model = Model(name=name, revision=revision, attention=card["attention"])
        config = Config(name="adapter", data=Data(path="none"), model=model, prompts=prompts)
        return Found(config, LabelSet(tuple(card["labels"])), folder, merged=merged)
    except (KeyError, TypeError, ValidationError) as error:
        reason = str(error).replace("\n", " ")
        raise DataError(
            f"{folder / CARD}: not written by this version of erckit ({reason}). Train the adapter again."
        ) from error


def save_adapter(model: Any, folder: Path, config: Config, labels: LabelSet, wording: Wording) -> None:
    """Write adapter_model.safetensors and adapter_config.json, the wording, and erckit.json: what it was made for."""
    # Not the folder it was loaded from, which another machine does not have.
    model.active_peft_config.base_model_name_or_path = config.model.name
    # Embeddings are never trained; to find that out by itself, PEFT would ask the hub.
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
    }
    write_json(folder / CARD, card)


def load_adapter(model: Any, folder: Path, config: Config, labels: LabelSet, wording: Wording) -> Any:
    """Lay the adapter over its base model, in evaluation mode, nothing of it trainable.

    Raises DataError where it was made for another base model, label set or wording, or is no adapter of erckit's.
    """
    from peft import PeftModel

    if not (folder / CARD).is_file():
        raise DataError(
            f"{folder / CARD}: missing, so this is no adapter that erckit made. Train one, or name its folder."
        )
    card = read_json(folder / CARD)
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
    for key, value in config.prompts.model_dump(mode="json", exclude={"template"}).items():
        trained = card["protocol"].get(key)
        if trained != value:
            say(f"  note: the adapter was trained with prompts.{key} {trained!r}, and is asked with {value!r}")
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=False).eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise DataError(
            f"{folder}: the adapter cannot be loaded ({reason}). Copy its folder again, or train again."
        ) from error
