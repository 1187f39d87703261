"""Rendering the page: templates, filters and the style sheet beside this file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import format_seconds
from .conversations import mark
from .plots import EMOTION_COLOURS

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent
MINUS = "\N{MINUS SIGN}"


def render_page(findings: Mapping[str, Any]) -> str:
    """Return the page as HTML. `findings` are the variables of page.html.jinja; one too few raises UndefinedError."""
    return make_environment(findings["labels"]).get_template("page.html.jinja").render(findings)


def make_environment(labels: Sequence[str]) -> "Environment":
    """Return the environment of the templates: it escapes all text but the plots, which are markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "whole": "{:,}".format, "duration": format_seconds}
    places = {label: place % len(EMOTION_COLOURS) for place, label in enumerate(labels)}
    environment.globals |= {
        "emotion_class": lambda label: f"e{places[label]}",
        "emotion_colours": EMOTION_COLOURS,
        "mark": mark,
    }
    return environment


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)
