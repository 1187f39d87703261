"""The shipped configurations, and that nothing in a configuration goes unread."""

import ast
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest
from erckit.data.forms import FORMS
from erckit.pipeline.config import Config, Data, dump_config, load_config, shipped_configs
from erckit.prompts.wording import read_wording
from pydantic import BaseModel

ROOT = Path(str(files("erckit")))
SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
# As the sources import them: a section's own name is often that of something else.
CLASSES = {f"{section.__name__}{end}": name for name, section in SECTIONS.items() for end in ("Config", "")}


@pytest.mark.parametrize("name", shipped_configs())
def test_every_shipped_configuration_parses_and_says_what_it_is_for(name, tmp_path):
    config = load_config(name)
    assert config.name == name and shipped_configs()[name].endswith(".")
    assert read_wording(config.prompts.template)
    assert config.predict.adapter is None

    path = tmp_path / "all.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(path)) == config


def test_no_shipped_configuration_is_an_oracle_unless_marked():
    """Gold recent emotions as the way to predict make every number an oracle's."""
    assert {load_config(name).prompts.recent_emotions for name in shipped_configs()} <= {"predicted", "none"}


def test_every_form_of_a_corpus_can_be_asked_for():
    assert get_args(Data.model_fields["form"].annotation) == ("auto", *FORMS)


def test_every_key_is_read_by_code():
    read = {key for path in ROOT.glob("pipeline/**/*.py") for key in keys_read(ast.parse(path.read_text("utf-8")))}
    assert {f"{name}.{field}" for name, section in SECTIONS.items() for field in section.model_fields} <= read
    assert Config.model_fields.keys() - SECTIONS <= read


def test_reading_is_told_from_mentioning():
    source = """
def run(config: Config, other: Other):
    settings, labels = config.train, other.labels
    say(settings.epochs, labels.batch_size, other.patience, load(config.model).name)
    return config.predict.adapter, config.seed

def load(options: ModelConfig):
    options.revision = 1
    return options.dtype
"""
    assert set(keys_read(ast.parse(source))) == {"train.epochs", "predict.adapter", "seed", "model.dtype"}


def keys_read(tree: ast.Module) -> Iterator[str]:
    """The keys that functions read: of `config`, of `config.section`, of a name given to it, or of a parameter."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    kept: dict[str, str] = {}  # what methods keep in `self`
    for function in functions:
        kept |= {name: section for name, section in names_in(function, {}).items() if name.startswith("self.")}
    for function in functions:
        names = names_in(function, kept)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                if section := names.get(ast.unparse(node.value)) or section_of(node.value):
                    yield f"{section}.{node.attr}"
                elif ast.unparse(node.value) == "config" and node.attr not in SECTIONS:
                    yield node.attr


def names_in(function: ast.FunctionDef, kept: dict[str, str]) -> dict[str, str]:
    """The sections that a function has by name: given to it, assigned there, or kept in `self`."""
    names = kept | {
        argument.arg: CLASSES[kind]
        for argument in [*function.args.args, *function.args.kwonlyargs]
        if argument.annotation and (kind := ast.unparse(argument.annotation).removesuffix(" | None")) in CLASSES
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            names |= dict(sections_named(node, names))
    return names


def sections_named(assignment: ast.Assign, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(name, section) for `name = config.section`, or for another name of the same, alone or among others."""
    for target in assignment.targets:
        pairs = [(target, assignment.value)]
        if isinstance(target, ast.Tuple) and isinstance(assignment.value, ast.Tuple):
            pairs = list(zip(target.elts, assignment.value.elts, strict=True))
        yield from (
            (ast.unparse(name), section)
            for name, value in pairs
            if (section := section_of(value) or names.get(ast.unparse(value)))
        )


def section_of(node: ast.expr) -> str | None:
    is_section = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "config" and node.attr in SECTIONS
    return node.attr if is_section else None
