"""The plots of the page: SVG in the page's own colours, so that one drawing serves the light and the dark scheme."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

from .systems import MODEL, Difference, Score, System

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MINUS = "\N{MINUS SIGN}"

# Paul Tol's "light" scheme (https://personal.sron.nl/~pault): it stays apart for colour-blind eyes, under dark letters.
EMOTION_COLOURS = (
    "#eedd88", "#ee8866", "#44bb99", "#dddddd", "#77aadd", "#99ddff", "#aaaa00", "#ffaabb", "#bbcc33",
)  # fmt: skip

# Stand-ins while matplotlib draws; in the SVG each becomes the variable of the style sheet.
INK, SOFT, LINE, PAPER, ACCENT = "#000001", "#000002", "#000003", "#000004", "#000005"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", PAPER: "--paper", ACCENT: "--accent"}
_WIDTH = 360  # points, shown larger on a screen, and on a phone as wide as it is
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "erckit",  # ids that do not change from run to run
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label may hold a dollar sign
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.constrained_layout.hspace": 0.1,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """How training went: `losses` as (step, loss), `looks` at dev as (epoch, step, W-F1), the place of the kept one."""

    losses: tuple[tuple[int, float], ...]
    looks: tuple[tuple[float, int, float], ...]
    kept: int


def read_curve(log: Sequence[Mapping[str, Any]]) -> Curve | None:
    """Return the curve in a training log, None where dev was never looked at."""
    losses = tuple((entry["step"], entry["loss"]) for entry in log if "loss" in entry)
    looks = tuple((entry["epoch"], entry["step"], entry["eval_w_f1"]) for entry in log if "eval_w_f1" in entry)
    if not looks:
        return None
    # As the trainer decides: a later look has to be better, not just as good.
    return Curve(losses, looks, max(range(len(looks)), key=lambda place: looks[place][2]))


def plot_systems(systems: Sequence[System]) -> "Markup":
    """Draw a dot and a 95 % interval for the W-F1 of each system on test, in their order from the top."""
    with _drawing(48 + 42 * len(systems)) as (figure, (axes,)):
        axes.set_ylim(len(systems) - 0.4, -0.5)
        for row, system in enumerate(systems):
            colour, words = ACCENT if system.name == MODEL else INK, f"{system.test.value:.2f}"
            _draw_score(axes, row, system.test, words, colour, system.oracle)
        axes.set_yticks(range(len(systems)), [fill(system.title, 20) for system in systems])
        axes.set_xlabel("W-F1 on test, percent")
        axes.grid(axis="x")
        axes.margins(x=0.12)
        said = [f"{s.title}{_say(s.oracle)} {s.test.value:.2f}, {s.test.low:.2f} to {s.test.high:.2f}" for s in systems]
        return _to_svg(figure, "systems", f"W-F1 on test with 95 % intervals: {'; '.join(said)}.")


def plot_differences(differences: Sequence[Difference], what: str, name: str) -> "Markup":
    """Draw differences with their 95 % intervals around a line at 0 (a forest plot), in their order from the top.

    Those whose interval holds 0 are drawn in plain ink. `what` is measured, in percent.
    """
    with _drawing(48 + 42 * len(differences)) as (figure, (axes,)):
        axes.set_ylim(len(differences) - 0.4, -0.5)
        axes.axvline(0, color=SOFT, linewidth=1.2)
        for row, one in enumerate(differences):
            words = f"{one.score.value:+.2f}".replace("-", MINUS) + (f", {one.note}" if one.note else "")
            _draw_score(axes, row, one.score, words, INK if one.score.holds_zero else ACCENT, one.oracle)
        axes.set_yticks(range(len(differences)), [fill(one.title, 20) for one in differences])
        axes.set_xlabel(f"{what}, percent")
        axes.grid(axis="x")
        axes.margins(x=0.12)
        said = [
            f"{one.title}{_say(one.oracle)} {one.score.value:+.2f}, {one.score.low:+.2f} to {one.score.high:+.2f}"
            for one in differences
        ]
        return _to_svg(figure, name, f"{what} with 95 % intervals: {'; '.join(said)}.")


def plot_classes(per_class: Mapping[str, Mapping[str, float]], oracle: bool) -> "Markup":
    """Draw precision, recall and F1 of each emotion on one line."""
    with _drawing(64 + 24 * len(per_class)) as (figure, (axes,)):
        axes.set_ylim(len(per_class) - 0.5, -0.5)
        for row, scores in enumerate(per_class.values()):
            axes.plot([scores["precision"], scores["recall"]], [row, row], color=SOFT, linewidth=1)
            emotion = EMOTION_COLOURS[row % len(EMOTION_COLOURS)]
            for key, marker, size, face in (
                ("precision", "<", 5, INK),
                ("recall", ">", 5, INK),
                ("f1", "o", 9, emotion),
            ):
                style: dict[str, Any] = {"markersize": size, "markerfacecolor": face, "markeredgecolor": INK}
                axes.plot(scores[key], row, marker, **style, label=key.replace("f1", "F1") if row == 0 else None)
        axes.set_yticks(range(len(per_class)), list(per_class))
        axes.set_xlim(-3, 103)
        axes.set_xlabel("percent")
        axes.grid(axis="x")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handletextpad=0.2, borderpad=0, borderaxespad=0.2)
        if oracle:
            _write_badge(axes, (88, -0.5), (0, 9))
        said = [f"{label} {s['precision']:.0f}, {s['recall']:.0f}, {s['f1']:.0f}" for label, s in per_class.items()]
        summary = f"Precision, recall and F1 of each emotion on test{_say(oracle)}, percent: {'; '.join(said)}."
        return _to_svg(figure, "classes", summary)


def plot_reliability(bins: Sequence[Mapping[str, Any]], oracle: bool) -> "Markup":
    """Draw the share of right answers by their confidence, each bin a dot with a 95 % interval, larger for more."""
    with _drawing(300) as (figure, (axes,)):
        axes.plot([0, 100], [0, 100], color=SOFT, linestyle=":", linewidth=1.2)
        _write(axes, "as often right as sure", (88, 88), (-8, 0), SOFT, ha="right", va="center")
        most = max(one["utterances"] for one in bins)
        for one in bins:
            place, (low, high) = (one["confidence"], one["accuracy"]), one["accuracy_interval"]
            axes.plot([place[0]] * 2, [low, high], color=ACCENT)
            # Areas, which eyes compare, are in proportion; the smallest dots can still be seen.
            axes.plot(*place, "o", color=ACCENT, markersize=max(3, 14 * (one["utterances"] / most) ** 0.5))
        axes.set_xlim(0, 100)
        axes.set_ylim(-3, 103)
        axes.set_xlabel("confidence: the probability of the answer, percent")
        axes.set_title("right answers, percent", loc="left", fontsize=12, color=SOFT)
        axes.tick_params(axis="y", labelcolor=SOFT)
        axes.grid()
        if oracle:
            _write_badge(axes, (90, 5), (0, 0))
        said = [f"{one['confidence']:.0f}: {one['accuracy']:.0f}, of {one['utterances']}" for one in bins]
        summary = f"Share of right answers by confidence on test{_say(oracle)}, percent: {'; '.join(said)} utterances."
        return _to_svg(figure, "reliability", summary)


def plot_training(curve: Curve) -> "Markup":
    """Draw the loss by step, and below it dev W-F1 by epoch with the kept checkpoint marked."""
    with _drawing(280, rows=2) as (figure, (upper, lower)):
        upper.plot([step for step, _ in curve.losses], [loss for _, loss in curve.losses], color=INK, linewidth=1.2)
        upper.set_title("training loss", loc="left", fontsize=12, color=SOFT)
        upper.set_xlabel("optimiser step")
        epochs, scores = [look[0] for look in curve.looks], [look[2] for look in curve.looks]
        kept = (epochs[curve.kept], scores[curve.kept])
        lower.plot(epochs, scores, "o-", color=ACCENT, markersize=5)
        lower.plot(*kept, "o", markersize=11, markerfacecolor="none", markeredgecolor=ACCENT)
        _write(lower, f"kept: {kept[1]:.2f}", kept, (0, 9), ACCENT, ha="center", va="bottom")
        lower.set_title("W-F1 on dev, percent", loc="left", fontsize=12, color=SOFT)
        lower.set_xlabel("epoch")
        lower.set_xlim(0, max(epochs) * 1.05)
        lower.locator_params(axis="x", integer=True)
        lower.margins(y=0.45)
        for axes in (upper, lower):
            axes.grid(axis="y")
            axes.tick_params(axis="y", labelcolor=SOFT)
        losses = [f"{loss:.2f}" for _, loss in curve.losses]
        fall = f"The training loss goes from {losses[0]} to {losses[-1]}. " if losses else ""
        said = "; ".join(f"epoch {epoch:g}: {score:.2f}" for epoch, _, score in curve.looks)
        return _to_svg(figure, "training", f"{fall}W-F1 on dev, {said}. Kept: epoch {kept[0]:g}.")


@contextmanager
def _drawing(height: float, rows: int = 1) -> "Iterator[tuple[Figure, list[Axes]]]":
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own matplotlibrc says
        matplotlib.rcParams.update(_STYLE)
        figure = Figure(figsize=(_WIDTH / 72, height / 72), layout="constrained")
        yield figure, list(figure.subplots(rows, squeeze=False)[:, 0])


def _draw_score(axes: "Axes", row: int, score: Score, words: str, colour: str, oracle: bool) -> None:
    """Draw a dot and a 95 % interval, with words below; those of an oracle hollow, dotted and with a badge."""
    axes.plot([score.low, score.high], [row, row], color=colour, linestyle=":" if oracle else "-")
    face = PAPER if oracle else colour
    axes.plot(score.value, row, "o", markersize=7, markerfacecolor=face, markeredgecolor=colour)
    plain = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # lines pass behind the words
    _write(axes, words, (score.value, row), (0, -7), colour, ha="center", va="top", bbox=plain)
    if oracle:
        _write_badge(axes, (score.value, row), (0, 13))


def _write(
    axes: "Axes", text: str, place: tuple[float, float], shift: tuple[float, float], colour: str, **options: Any
) -> None:
    axes.annotate(text, place, xytext=shift, textcoords="offset points", color=colour, fontsize=11, **options)


def _write_badge(axes: "Axes", place: tuple[float, float], shift: tuple[float, float]) -> None:
    box = {"boxstyle": "round,pad=0.25", "facecolor": PAPER, "edgecolor": INK, "linewidth": 0.8}
    _write(axes, "oracle", place, shift, INK, ha="center", va="center", bbox=box, annotation_clip=False)


def _say(oracle: bool) -> str:
    return " (oracle)" if oracle else ""


def _to_svg(figure: "Figure", name: str, alt: str) -> "Markup":
    """Return the drawing as an element of the page; `name` keeps its ids apart from those of other plots."""
    from markupsafe import Markup, escape

    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;", "", svg)  # that of the page
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))
