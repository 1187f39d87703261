"""Configurations: what is written comes back, and all that is wrong is said at once, each with its place."""

import math
import re
from typing import Any, Literal, get_args, get_origin

import pytest
from erckit.pipeline.config import Config, ConfigError, annotate_config, dump_config, load_config, shipped_configs
from erckit.pipeline.yaml_text import dump_mapping, parse_mapping
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

MINIMAL = "name: talk\ndata:\n  path: sample\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Write a text as talk.yaml in the working folder and load it."""
    monkeypatch.chdir(tmp_path)

    def write_and_load(text: str, *overrides: str, seed: int | None = None) -> Config:
        (tmp_path / "talk.yaml").write_text(text, encoding="utf-8")
        return load_config("talk.yaml", overrides, seed)

    return write_and_load


# Strings that YAML reads as something else when they stand without quotes.
tricky = st.sampled_from(
    ["1e5", "12e-4", ".5E+3", "1", "null", "~", "yes", "1:30", "2020-01-01", "a: b", "# a", "\x85"]
)


def values_of(annotation: Any, bounds: dict[str, Any]) -> st.SearchStrategy:
    """Valid values of a field, from its type and its bounds in the JSON schema."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return sections(annotation)
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if annotation is bool:
        return st.booleans()
    if annotation in (int, float):
        return numbers(annotation, bounds)
    if annotation is str:
        return st.from_regex(bounds["pattern"], fullmatch=True) if "pattern" in bounds else tricky | st.text(min_size=1)
    if get_origin(annotation) is tuple:
        return st.lists(tricky | st.text()).map(tuple)
    return st.none() | tricky | st.text(min_size=1)  # the one kind that is left is str | None


def numbers(kind: type, bounds: dict[str, Any]) -> st.SearchStrategy:
    low = bounds.get("minimum", bounds.get("exclusiveMinimum"))
    high = bounds.get("maximum", bounds.get("exclusiveMaximum"))
    made = st.integers(low, high) if kind is int else st.floats(low, high, allow_nan=False, allow_infinity=False)
    return made.filter(lambda n: n not in (bounds.get("exclusiveMinimum"), bounds.get("exclusiveMaximum")))


def sections(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    bounds = model.model_json_schema()["properties"]
    return st.fixed_dictionaries({k: values_of(f.annotation, bounds[k]) for k, f in model.model_fields.items()})


def is_possible(values: dict[str, Any]) -> bool:
    """The cross checks, written a second time."""
    model, prompts = values["model"], values["prompts"]
    on_cpu = model["device"] == "cpu"
    possible = not on_cpu or (model["quantization"] != "nf4" and model["dtype"] != "float16")
    possible = possible and not (values["memory"]["scope"] == "speaker" and values["memory"]["chunk"] > 1)
    return possible and prompts["fact_tokens"] < prompts["max_tokens"] and len(values["name"]) <= 100


@given(values=sections(Config))
def test_a_configuration_that_was_written_loads_back_equal(values, tmp_path_factory):
    if not is_possible(values):
        with pytest.raises(ValidationError):
            Config.model_validate(values)
        return
    config = Config.model_validate(values)
    path = tmp_path_factory.mktemp("dump") / "talk.yaml"
    for write in (dump_config, annotate_config):
        path.write_text(write(config), encoding="utf-8", newline="")
        assert load_config(str(path)) == config
    assert config.model_dump() == values  # and strict validation changed nothing


def test_every_key_of_an_annotated_configuration_says_what_it_means(load):
    lines = annotate_config(load(MINIMAL, "train.report_to=[tensorboard]")).splitlines()

    assert lines[:4] == [
        "name: talk  # run name: letters, digits, '.', '_', '-'",
        "seed: 1  # seed of everything random",
        "data:  # the corpus; data.path names it",
        '  path: sample  # "sample", or a path, also looked up in the folder $ERCKIT_DATA',
    ]
    assert lines[lines.index("  report_to:  # trackers, such as tensorboard") + 1] == "  - tensorboard"
    assert [line for line in lines if "#" not in line] == ["  - tensorboard"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | tricky | st.text(), lambda v: st.lists(v)))
def test_any_value_survives_a_dump(value):
    assert parse_mapping(dump_mapping({"key": value}), "talk.yaml")[0] == {"key": value}


@given(st.floats(1e-12, 1e12), st.sampled_from(["{:e}", "{:E}", "{:.0e}", "{:.3g}", "{!r}"]))
def test_numbers_in_scientific_notation_are_the_numbers_python_reads(number, form):
    text = form.format(number)
    for spelling in (text, text.replace("e-0", "e-").replace("e+0", "e")):
        value = parse_mapping(f"rate: {spelling}", "talk.yaml")[0]["rate"]
        assert value == float(spelling) and not isinstance(value, str)


@pytest.mark.parametrize(
    "text, value", [("1e-4", 1e-4), ("1E-5", 1e-5), ("2.5e-3", 0.0025), (".5e-1", 0.05), ("1", 1.0)]
)
def test_learning_rates_as_people_write_them(load, text, value):
    assert load(MINIMAL + f"train: {{learning_rate: {text}}}").train.learning_rate == value
    assert load(MINIMAL, f"train.learning_rate={text}").train.learning_rate == value


def test_the_shortest_configuration_takes_every_default(load):
    config = load(MINIMAL)

    assert (config.name, config.seed, config.data.path) == ("talk", 1, "sample")
    assert config.train == Config.model_fields["train"].get_default()


def test_overrides_win_over_the_file_the_last_one_over_the_first_and_seed_over_both(load):
    text = MINIMAL + "seed: 3\ntrain: {epochs: 2, patience: 9}"
    config = load(text, "train.epochs=4", "train.epochs=5", "model.revision=", "seed=6", seed=7)

    assert (config.train.epochs, config.train.patience, config.model.revision, config.seed) == (5, 9, None, 7)
    assert load(text, "seed=6").seed == 6
    assert load(text, "train.report_to=[tensorboard, wandb]").train.report_to == ("tensorboard", "wandb")


# One fault a row: what is written, and the line that has to be said of it. {} is its line number.
FAULTS = [
    ("profiles: {encoder: 3}", "talk.yaml:{}: profiles.encoder: found 3, expected a valid string; put it in quotes"),
    ("seed: -1", "talk.yaml:{}: seed: found -1, expected greater than or equal to 0"),
    (
        "model: {dtype: half}",
        "talk.yaml:{}: model.dtype: found 'half', expected 'auto', 'float32', 'bfloat16' or 'float16'",
    ),
    ("prompts: {max_tokens: 63}", "talk.yaml:{}: prompts.max_tokens: found 63, expected greater than or equal to 64"),
    ("train: {epoch: 3}", "talk.yaml:{}: train.epoch: unknown key, did you mean train.epochs?"),
    ("predict: {window: 3}", "talk.yaml:{}: predict.window: unknown key, did you mean prompts.window?"),
    ("evaluate:", "talk.yaml:{}: evaluate: found None, expected a mapping of keys"),
    ("report: {prompts: 1.5}", "talk.yaml:{}: report.prompts: found 1.5, expected a valid integer"),
    ("trian: {}", "talk.yaml:{}: trian: unknown key, did you mean train?"),
    ("learning_rate: 1", "talk.yaml:{}: learning_rate: unknown key, did you mean train.learning_rate?"),
    ("xyzzy: 1", "talk.yaml:{}: xyzzy: unknown key, expected one of name, seed, data,"),
]
OVERRIDE_FAULTS = [
    ("train.epochs", "--set train.epochs: found no '=', expected section.key=VALUE"),
    ("model.nam=x", "--set model.nam=x: model.nam: unknown key, did you mean model.name?"),
    ("train=3", "--set train=3: train: unknown key, expected one of train.epochs, train.learning_rate, train.batch"),
    ("train.lr=1", "--set train.lr=1: train.lr: unknown key, expected one of train.epochs, train.learning_rate, "),
    ("trian.lr=1", "--set trian.lr=1: trian.lr: unknown key, "),
    ("data.form=[", "--set data.form=[:1: broken YAML"),
    ("prompts.facts=-1", "--set prompts.facts=-1: prompts.facts: found -1, expected greater than or equal to 0"),
]


@given(
    faults=st.lists(st.sampled_from(FAULTS), unique=True), bad=st.lists(st.sampled_from(OVERRIDE_FAULTS), unique=True)
)
def test_all_problems_are_reported_together_each_in_its_own_line(faults, bad, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    path = folder / "talk.yaml"
    path.write_text("data: {path: sample}\nname: talk\n" + "\n".join(line for line, _ in faults), encoding="utf-8")
    expected = [message.format(number) for number, (_, message) in enumerate(faults, start=3)]
    expected += [message for _, message in bad]

    if not expected:
        assert load_config(str(path)).name == "talk"
        return
    with pytest.raises(ConfigError) as raised:
        load_config(str(path), [override for override, _ in bad])
    first, *lines = str(raised.value).replace(f"{folder}/", "").splitlines()
    assert first == f"talk.yaml: the configuration has {len(expected)} problem{'s' * (len(expected) > 1)}:"
    assert len(lines) == len(expected)
    for message in expected:
        assert any(line.startswith("  " + message) for line in lines), (message, lines)


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: talk\nname: walk\n", "talk.yaml:2: duplicate key 'name', first given in line 1. Keep one."),
        (
            MINIMAL + "train:\n  epochs: 1\n  patience: 1\n  epochs: 2\n",
            "talk.yaml:7: duplicate key 'train.epochs', first given in line 5. Keep one.",
        ),
        ("name: talk\ndata: {path: sample\n", "talk.yaml:3: broken YAML"),
        ("name: talk\n\tdata: 1\n", "talk.yaml:2: broken YAML"),
        ("name: talk\ndata: *nowhere\n", "talk.yaml:2: broken YAML (found undefined alias 'nowhere')"),
        ("name: talk\n? [a, b]\n: 1\n", "talk.yaml:2: broken YAML (found unhashable key)"),
        ("name: !!python/object:os.system {}\n", "talk.yaml:1: broken YAML (could not determine a constructor"),
        ("name: talk\n---\nname: walk\n", "talk.yaml:2: broken YAML (but found another document)"),
        ("name: \x00\n", "talk.yaml: broken YAML (unacceptable character"),
        ("- name\n", "talk.yaml:1: found list, expected a mapping. Write it as `key: value`."),
        ("talk", "talk.yaml:1: found str, expected a mapping."),
        ("", "talk.yaml:1: found NoneType, expected a mapping."),
    ],
)
def test_text_that_is_no_configuration_is_refused_with_its_line(load, text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(text)


def test_a_file_in_another_encoding_is_refused_with_its_line(load, tmp_path):
    (tmp_path / "luc.yaml").write_bytes("name: talk\ndata: {path: lucía}\n".encode("latin-1"))

    message = "luc.yaml:2: expected UTF-8, found other bytes (invalid continuation byte). Save it so."
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(str(tmp_path / "luc.yaml"))


def test_a_dotted_key_is_never_taken_for_a_section():
    for path in (f"{section}.{name}" for section in Config.model_fields for name in ("lr", "x", "dat")):
        with pytest.raises(ConfigError) as raised:
            load_config("sample", [f"{path}=1"])
        hint = str(raised.value).partition("did you mean ")[2].rstrip("?")
        assert not hint or "." in hint or hint in ("name", "seed", "processes"), (path, hint)


def test_missing_keys_are_named_with_what_they_mean(load):
    with pytest.raises(ConfigError, match=r"talk.yaml: name: missing, expected run name: letters") as raised:
        load("data: {}")
    assert 'talk.yaml:1: data.path: missing, expected "sample", or a path' in str(raised.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("model: {device: cpu, quantization: nf4}", "model.device: found 'cpu', expected auto or cuda, because"),
        (
            "model: {device: cpu, dtype: float16}",
            "model.device: found 'cpu', expected auto or cuda, because model.dtype",
        ),
        ("prompts: {max_tokens: 64, fact_tokens: 64}", "prompts.fact_tokens: found 64, expected less than prompts.max"),
        ("name: a/b", "name: found 'a/b', expected run name: letters, digits"),
        ("name: ..", "name: found '..', expected run name"),
        ("train: {learning_rate: .nan}", "train.learning_rate: found nan, expected"),
        ("train: {lora_dropout: 1}", "train.lora_dropout: found 1, expected less than 1"),
        ("train: {gradient_checkpointing: 1}", "train.gradient_checkpointing: found 1, expected a valid boolean"),
        ("train: {epochs: '3'}", "train.epochs: found '3', expected a valid integer"),
        ("train: {report_to: tensorboard}", "train.report_to: found 'tensorboard', expected a list, [VALUE, ...]"),
        ("train: {report_to: [1]}", "train.report_to.0: found 1, expected a valid string"),
    ],
)
def test_impossible_values_say_what_would_be_possible(load, text, message):
    base = "data: {path: sample}\n" + ("" if text.startswith("name") else "name: talk\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(base + text)


def test_an_anchor_inside_itself_is_an_error_not_an_endless_loop(load):
    with pytest.raises(ConfigError):
        load("name: talk\ndata: &a\n  path: *a\n")


def test_unknown_names_and_missing_files_say_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no shipped configuration has this name; expected one of"):
        load_config("nowhere")
    with pytest.raises(FileNotFoundError, match="no such configuration file"):
        load_config(str(tmp_path / "nowhere.yaml"))


def test_every_field_says_what_it_is_and_every_number_has_a_bound():
    for section in [Config, *(f.annotation for f in Config.model_fields.values())]:
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            continue
        for name, properties in section.model_json_schema()["properties"].items():
            field = section.model_fields[name]
            assert field.description and "\n" not in field.description, name
            if field.annotation in (int, float):
                assert properties.keys() & {"minimum", "exclusiveMinimum"}, name


def test_a_configuration_cannot_be_changed(load):
    with pytest.raises(ValidationError):
        load(MINIMAL).train.epochs = 5
    assert math.isclose(load(MINIMAL).train.learning_rate, 1e-3)


def test_every_shipped_configuration_is_valid_and_says_what_it_is_for():
    for name, summary in shipped_configs().items():
        assert load_config(name).name == name
        assert summary, f"{name}.yaml has no comment in its first lines"
