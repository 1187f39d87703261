"""Strict YAML: duplicate keys are refused, 1e-4 is a number, and every key knows its line."""

import re
from collections.abc import Iterator
from typing import Any

import yaml


class ConfigError(ValueError):
    """Something in a configuration is wrong; the message has a line for each problem."""


# YAML 1.1, as PyYAML reads it, asks for a dot and a signed exponent: it takes 1e-4 and 2.5e3 for strings.
_SHORT_FLOAT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # In single quotes PyYAML folds the line breaks of Unicode, such as \x85, to a blank.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


for _kind in (_Loader, _Dumper):  # the dumper too, so that it quotes the string "1e5"
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _SHORT_FLOAT, list("-+.0123456789"))

_Dumper.add_representer(str, _Dumper.represent_str)


def parse_value(text: str, source: str) -> Any:
    """Parse one YAML value. Raises ConfigError naming `source`."""
    return _load(text, source)[0]


def parse_mapping(text: str, source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Parse a YAML mapping. Returns it and the place ("file:line") of each dotted key.

    Raises ConfigError for broken YAML, a duplicate key, or anything but a mapping.
    """
    values, places = _load(text, source)
    if not isinstance(values, dict):
        raise ConfigError(f"{source}:1: found {type(values).__name__}, expected a mapping. Write it as `key: value`.")
    return values, places


def dump_mapping(values: dict[str, Any]) -> str:
    """Write YAML that `parse_mapping` reads back equal, in the order given."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000)


def _load(text: str, source: str) -> tuple[Any, dict[str, str]]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, {}
        places = dict(_walk(node, "", source, set()))
        return loader.construct_document(node), places
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{source}:{line}: broken YAML ({error.problem or error.context}). Mend the line.") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source}: broken YAML ({' '.join(str(error).split())}). Mend the file.") from error


def _walk(node: yaml.Node, prefix: str, source: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    # An anchor may stand inside what it names: each node is walked once.
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _walk(item, prefix, source, seen)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in lines:
                raise ConfigError(
                    f"{source}:{line}: duplicate key {prefix + name!r}, first given in line {lines[name]}. Keep one."
                )
            lines[name] = line
            yield prefix + name, f"{source}:{line}"
            yield from _walk(value, f"{prefix}{name}.", source, seen)
