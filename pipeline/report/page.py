"""Rendering pages: templates, filters, the style sheet and the script beside this file."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ..console import format_seconds
from .conversations import mark
from .plots import EMOTION_COLOURS, MINUS

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent


def render_page(template: str, findings: Mapping[str, Any]) -> str:
    """Return a page as HTML. `findings` are the variables of the template; one too few raises UndefinedError."""
    return make_environment(findings.get("labels", ())).get_template(template).render(findings)


def make_environment(labels: Sequence[str]) -> "Environment":
    """Return the environment of the templates: it escapes all text but plots and our script, which are markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "whole": "{:,}".format, "duration": format_seconds}
    environment.filters["count"] = _count
    places = {label: place % len(EMOTION_COLOURS) for place, label in enumerate(labels)}
    script = (FOLDER / "script.js").read_text(encoding="utf-8")
    environment.globals |= {
        "emotion_class": lambda label: f"e{places[label]}",
        "emotion_colours": EMOTION_COLOURS,
        "mark": mark,
        "script": Markup(script),
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "version": __version__,
    }
    return environment


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", MINUS)


def _count(value: float) -> str:
    """Return a count, or a mean of counts with one digit where it has one."""
    return f"{value:,.1f}".removesuffix(".0")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)
