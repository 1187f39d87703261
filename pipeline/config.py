"""The configuration of a run: one small frozen model a section, checked as a whole before anything runs."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, ValidationInfo, field_validator

from .yaml_text import ConfigError, dump_mapping, parse_mapping, parse_value

__all__ = [
    "Config", "ConfigError", "annotate_config", "change_config", "dump_config", "load_config", "shipped_configs",
]  # fmt: skip


class Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Data(Section):
    """The corpus."""

    path: str = Field(min_length=1, description='"sample", or a path, also looked up in the folder $ERCKIT_DATA')
    form: Literal[
        "auto", "emorynlp-json", "emorynlp-text", "emorynlp-csv", "meld-csv", "dailydialog", "iemocap-6", "iemocap-4",
        "erckit-jsonl",
    ] = Field(default="auto", description="file format of the corpus; auto recognises it")  # fmt: skip
    aliases: str = Field(default="auto", min_length=1, description="YAML table of speaker names; auto: the shipped one")
    also: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=(), description="further corpora, whose train parts are added to train"
    )
    feelings: str = Field(
        default="auto", min_length=1, description="YAML table of what corpora name differently; auto: the shipped one"
    )
    drop_overlap: bool = Field(
        default=True, description="leave out added dialogues of which an utterance stands in dev or test"
    )


class Profiles(Section):
    """What is known of the speakers."""

    encoder: str = Field(
        default="embedded", min_length=1, description="sentence encoder: embedded, a hub name or a folder"
    )
    examples_per_emotion: int = Field(
        default=6, ge=1, description="utterances a speaker keeps as facts, for each emotion"
    )


class Model(Section):
    """The base language model."""

    name: str = Field(default="embedded", min_length=1, description="embedded, a hub name or a folder")
    revision: str | None = Field(default=None, min_length=1, description="commit, tag or branch on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="number format of the weights"
    )
    attention: Literal["causal", "utterance"] = Field(
        default="causal", description="utterance: both ways within an utterance or a question, causal between them"
    )
    quantization: Literal["none", "nf4"] = Field(default="none", description="nf4: the frozen weights in 4 bits")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where the model runs")
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model from the hub")

    @property
    def both_ways(self) -> bool:
        """Whether tokens of one utterance, or of one question, see each other both ways."""
        return self.attention == "utterance"

    @field_validator("device")
    @classmethod
    def _has_the_kernels(cls, device: str, info: ValidationInfo) -> str:
        if device == "cpu" and info.data.get("quantization") == "nf4":
            raise ValueError("auto or cuda, because model.quantization is nf4")
        if device == "cpu" and info.data.get("dtype") == "float16":
            raise ValueError("auto or cuda, because model.dtype is float16; a CPU takes auto, float32 or bfloat16")
        return device


class Prompts(Section):
    """What the model is shown and asked."""

    template: str = Field(default="instruct", min_length=1, description="a shipped wording or a folder with one")
    chat: bool = Field(default=False, description="wrap prompts in the tokenizer's chat template")
    max_tokens: int = Field(default=512, ge=64, description="longest prompt with its answer, in tokens")
    history: Literal["window", "full"] = Field(
        default="window", description="utterances shown: the last few, or all so far"
    )
    window: int = Field(default=6, ge=1, description="utterances shown, the asked one included")
    biography_tokens: int = Field(default=64, ge=0, description="longest biography of a speaker, in tokens; 0: none")
    facts: int = Field(default=2, ge=0, description="facts retrieved for each question")
    fact_tokens: int = Field(default=64, ge=0, description="longest retrieved facts of a question together, in tokens")
    recent_emotions: Literal["predicted", "gold", "none"] = Field(
        default="predicted", description="earlier emotions of the speaker; gold makes an oracle"
    )
    recent_count: int = Field(default=3, ge=1, description="recent emotions shown")

    @field_validator("fact_tokens")
    @classmethod
    def _leaves_room(cls, fact_tokens: int, info: ValidationInfo) -> int:
        budget = info.data.get("max_tokens")
        if budget is not None and fact_tokens >= budget:
            raise ValueError(f"less than prompts.max_tokens, which is {budget}")
        return fact_tokens


class Train(Section):
    """Fine-tuning of the task adapter."""

    epochs: int = Field(default=3, ge=1, description="passes over the training prompts")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="highest learning rate of the schedule")
    batch_size: int = Field(default=32, ge=1, description="utterances asked about in an optimiser step, on average")
    together: int = Field(default=8, ge=0, description="utterances of one dialogue asked about together; 0: all")
    row_tokens: int = Field(default=4096, ge=1, description="tokens of a forward pass, about")
    lora_rank: int = Field(default=16, ge=1, description="rank of the adapter's matrices")
    lora_alpha: int = Field(default=32, ge=1, description="scale of the adapter, divided by its rank")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of adapter inputs dropped")
    warmup_share: float = Field(default=0.1, ge=0, le=1, description="share of steps in which the learning rate rises")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="learning rate after the warm-up"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay a step, times the learning rate")
    max_gradient_norm: float = Field(default=1.0, gt=0, description="longer gradients are scaled down to this norm")
    class_weights: Literal["none", "inverse", "sqrt_inverse", "effective_number"] = Field(
        default="none", description="weight of an emotion in the loss, from its frequency"
    )
    effective_number_beta: float = Field(
        default=0.999, ge=0, lt=1, description="beta of the effective number of samples"
    )
    recent_noise: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="share of recent emotions in training prompts replaced by the model's own errors",
    )
    gradient_checkpointing: bool = Field(default=False, description="less memory for about a third more time")
    evaluations_per_epoch: int = Field(default=1, ge=1, description="looks at dev in an epoch")
    patience: int = Field(default=3, ge=1, description="evaluations without a better dev W-F1 before stopping")
    report_to: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=(), description="trackers, such as tensorboard"
    )


class Predict(Section):
    """Emotions for dev and test."""

    test: bool = Field(default=True, description="answer test too; false: dev alone, and the run ends with evaluate")
    conversations: int = Field(default=32, ge=1, description="conversations that advance together")
    row_tokens: int = Field(default=4096, ge=1, description="tokens of a forward pass, at most")
    adapter: str | None = Field(
        default=None, min_length=1, description="folder of an adapter to use in place of the run's own"
    )
    oracle: bool = Field(default=False, description="also answer with gold recent emotions, marked oracle")
    memory: bool = Field(default=False, description="answer with a temporary memory, as section memory describes it")

    @property
    def splits(self) -> tuple[str, ...]:
        return ("dev", "test") if self.test else ("dev",)


class Memory(Section):
    """The temporary memory of a conversation (`pipeline.memory`)."""

    content: Literal["semantics", "emotion", "both", "none"] = Field(
        default="both", description="what is written: what was said, the emotion recognised, both, or nothing"
    )
    scope: Literal["dialogue", "session", "speaker"] = Field(
        default="dialogue",
        description="what one memory is kept for; those of speakers last over all dialogues given",
    )
    window: int = Field(default=3, ge=1, description="utterances shown beside the memory, the asked one included")
    slots: int = Field(default=8, ge=1, description="conversations that advance together, each with a memory")
    layers: int = Field(default=2, ge=0, description="last layers that have temporary factors; 0: all")
    modules: Literal["all", "attention", "feed_forward"] = Field(
        default="all", description="linear modules of these layers that have them"
    )
    rank: int = Field(default=64, ge=1, description="rank of the temporary factors")
    scale: float = Field(default=1.0, gt=0, description="scale of the temporary factors: alpha divided by rank")
    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd", description="how a write steps; adamw steps as far for what is known as for what is new"
    )
    rate: float = Field(default=0.1, gt=0, le=10, description="learning rate of a write")
    damping: float = Field(default=0.0, ge=0, description="the rate of write n is divided by 1 + damping * n")
    chunk: int = Field(default=1, ge=1, description="turns that are written together; 1 with scope speaker")
    steps: int = Field(default=1, ge=1, description="optimiser steps a write")
    semantics_weight: float = Field(default=1.0, ge=0, description="weight of the loss of what was said")
    emotion_weight: float = Field(default=1.0, ge=0, description="weight of the loss of the recognised emotion")
    by_confidence: bool = Field(default=False, description="scale the loss of an emotion by its probability")
    least_surprise: float = Field(default=0.0, ge=0, description="turns whose loss is lower are not written, in nats")
    decay: float = Field(default=0.0, ge=0, lt=1, description="share that is forgotten before each write")
    largest_size: float = Field(
        default=0.1,
        gt=0,
        description="a write is undone that brings B above it, as the root mean square of its entries",
    )
    largest_rise: float = Field(
        default=0.5, ge=0, description="a write is undone that raises the loss of what it wrote by more, in nats"
    )
    oracle: bool = Field(default=False, description="write gold emotions in place of the recognised ones")

    @field_validator("chunk")
    @classmethod
    def _of_one_speaker(cls, chunk: int, info: ValidationInfo) -> int:
        if chunk > 1 and info.data.get("scope") == "speaker":
            raise ValueError("1, because memory.scope is speaker and neighbouring turns have other speakers")
        return chunk


class Evaluate(Section):
    """Metrics and their noise."""

    resamples: int = Field(default=2000, ge=1, description="bootstrap resamples of whole dialogues")


class Report(Section):
    """The page that shows it all."""

    conversations: int = Field(default=4, ge=0, description="conversations shown")
    prompts: int = Field(default=3, ge=0, description="prompts shown")


class Config(Section):
    """One run: its name, its seed, and a section for each stage."""

    name: str = Field(
        max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="run name: letters, digits, '.', '_', '-'"
    )
    seed: int = Field(default=1, ge=0, lt=2**32, description="seed of everything random")
    data: Data = Field(description="the corpus; data.path names it")
    profiles: Profiles = Field(default=Profiles(), description="what is known of the speakers")
    model: Model = Field(default=Model(), description="the base language model")
    prompts: Prompts = Field(default=Prompts(), description="what the model is shown and asked")
    train: Train = Field(default=Train(), description="fine-tuning")
    predict: Predict = Field(default=Predict(), description="emotions for dev and test")
    memory: Memory = Field(default=Memory(), description="the temporary memory, where predict.memory asks for one")
    evaluate: Evaluate = Field(default=Evaluate(), description="metrics and their noise")
    report: Report = Field(default=Report(), description="the page that shows it all")
    processes: int = Field(default=1, ge=1, description="processes that share the making of prompts")

    @property
    def is_oracle(self) -> bool:
        """Whether its answers are told gold emotions of the same dialogue."""
        return self.prompts.recent_emotions == "gold" or (self.predict.memory and self.memory.oracle)


def load_config(name_or_path: str, overrides: Sequence[str] = (), seed: int | None = None) -> Config:
    """Load a shipped configuration by its name, or a YAML file, with "section.key=VALUE" overrides.

    A name with a "/" or a YAML suffix is a file. Values of overrides are YAML.
    Raises ConfigError with a line for each problem; FileNotFoundError.
    """
    text, source = _read(name_or_path)
    values, places = parse_mapping(text, source)
    return _check(values, places, source, overrides, seed)


def change_config(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration with "section.key=VALUE" overrides. Raises ConfigError as `load_config` does."""
    return _check(config.model_dump(mode="json"), {}, config.name, overrides)


def dump_config(config: Config) -> str:
    """The whole configuration, defaults too, as YAML that `load_config` reads back equal."""
    return dump_mapping(config.model_dump(mode="json"))


def annotate_config(config: Config) -> str:
    """As `dump_config`, with what each key means as a comment at the end of its line."""
    return "".join(_annotate(config))


def shipped_configs() -> dict[str, str]:
    """The shipped configurations by name, each with its first comment line."""
    folder = files("erckit.pipeline") / "configs"
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.is_dir() else []
    return {
        entry.name.removesuffix(".yaml"): next(
            (line.strip("# ").rstrip() for line in entry.read_text("utf-8").splitlines() if line.startswith("#")), ""
        )
        for entry in entries
        if entry.name.endswith(".yaml")
    }


def _read(name_or_path: str) -> tuple[str, str]:
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such configuration file. Check the path.")
        try:
            return path.read_text(encoding="utf-8"), name_or_path
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ConfigError(
                f"{path}:{line}: expected UTF-8, found other bytes ({error.reason}). Save it so."
            ) from error
    shipped = shipped_configs()
    if name_or_path not in shipped:
        raise FileNotFoundError(
            f"{name_or_path}: no shipped configuration has this name; "
            f"expected one of {', '.join(shipped) or '(none)'}, or a file NAME.yaml."
        )
    name = f"{name_or_path}.yaml"
    return (files("erckit.pipeline") / "configs" / name).read_text(encoding="utf-8"), f"configs/{name}"


def _check(
    values: dict[str, Any], places: dict[str, str], source: str, overrides: Sequence[str], seed: int | None = None
) -> Config:
    problems = [problem for override in overrides if (problem := _apply(override, values, places))]
    if seed is not None:
        values["seed"], places["seed"] = seed, "--seed"
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            path = ".".join(str(part) for part in details["loc"])
            problems.append(f"{_place(path, places, source)}: {path}: {_explain(path, details)}")
    else:
        if not problems:
            return config
    raise ConfigError("\n  ".join([f"{source}: the configuration has {_count(problems)}:", *problems]))


def _annotate(section: Section, indent: str = "") -> Iterator[str]:
    values = section.model_dump(mode="json")
    for key, field in type(section).model_fields.items():
        inner = getattr(section, key)
        text = f"{key}:\n" if isinstance(inner, Section) else dump_mapping({key: values[key]})
        first, *items = text.removesuffix("\n").split("\n")
        yield f"{indent}{first}  # {field.description}\n"
        yield from (f"{indent}{item}\n" for item in items)
        if isinstance(inner, Section):
            yield from _annotate(inner, "  ")


def _apply(override: str, values: dict[str, Any], places: dict[str, str]) -> str | None:
    """Set one override in `values`. Returns the problem where there is one."""
    key, equals, text = override.partition("=")
    place = f"--set {override}"
    if not equals:
        return f"{place}: found no '=', expected section.key=VALUE"
    if key not in set(_keys()):
        return f"{place}: {key}: {_unknown(key)}"
    try:
        value = parse_value(text, place)
    except ConfigError as error:
        return str(error)
    *sections, name = key.split(".")
    inner = values.setdefault(sections[0], {}) if sections else values
    if isinstance(inner, dict):  # otherwise the validation says that it should be
        inner[name] = value
        places[key] = place
    return None


def _keys() -> Iterator[str]:
    for name, field in Config.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        yield from (f"{name}.{key}" for key in inner) if inner else (name,)


def _unknown(path: str) -> str:
    """Say that a key is unknown, and which valid one is nearest: same section first, then same name elsewhere."""
    section, dot, name = path.rpartition(".")
    keys = list(_keys())
    siblings = [key for key in keys if key.startswith(f"{section or path}.")]
    # Of several sections the first.
    names = {key.rpartition(".")[2]: key for key in reversed(keys) if "." in key or not dot}
    near = get_close_matches(path, siblings, n=1, cutoff=0.8)
    if not siblings and not dot:
        near += get_close_matches(path, Config.model_fields, n=1)
    if dot or not siblings:
        near += [names[match] for match in get_close_matches(name, names, n=1)]
    if not siblings:
        near += get_close_matches(path, keys, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(siblings or Config.model_fields)}"
    return f"unknown key, {hint}"


def _explain(path: str, details: Any) -> str:
    kind, found = details["type"], details["input"]
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "missing":
        field = Config.model_fields[path] if path in Config.model_fields else Data.model_fields[path.split(".")[1]]
        return f"missing, expected {field.description}"
    if kind == "model_type":
        return f"found {found!r}, expected a mapping of keys; remove the section to take the defaults"
    if kind == "value_error":
        return f"found {found!r}, expected {details['ctx']['error']}"
    if kind == "string_pattern_mismatch":
        return f"found {found!r}, expected {Config.model_fields['name'].description}"
    if kind == "tuple_type":
        return f"found {found!r}, expected a list, [VALUE, ...]"
    quotes = "; put it in quotes" if kind == "string_type" else ""
    return f"found {found!r}, expected {details['msg'].removeprefix('Input should be ')}{quotes}"


def _place(path: str, places: dict[str, str], source: str) -> str:
    """Where the key stands, or the nearest section around it that the file names."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    return places.get(path, source)


def _count(problems: Sequence[str]) -> str:
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
