"""The pages of a comparison of two runs and of an ablation: what stands in them, and their plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .page import render_page
from .plots import plot_differences
from .systems import Difference, Score, shade_rows

if TYPE_CHECKING:
    from ..ablation import Row


def render_comparison(findings: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return what `compare_runs` found as a page. `titles` are those of its scores."""
    oracle = any(findings[run]["oracle"] for run in "ab")
    of_all = _list_differences({titles[name]: one for name, one in findings["scores"].items()}, oracle)
    by_label = _list_differences(findings["f1"], oracle)
    # What both answer alike would outshine all else.
    differing = [
        [0 if row == column else count for column, count in enumerate(counts)]
        for row, counts in enumerate(findings["answers"])
    ]
    return render_page(
        "compare.html.jinja",
        {
            **findings,
            "labels": list(findings["f1"]),
            "titles": titles,
            "names": _name_runs(Path(findings["a"]["run"]), Path(findings["b"]["run"])),
            "oracle": oracle,
            "difference": of_all[0].score,
            "shades": shade_rows(differing),
            "plots": {
                "scores": plot_differences(of_all, "B minus A", "scores"),
                "f1": plot_differences(by_label, "F1, B minus A", "emotions"),
            },
        },
    )


def render_ablation(name: str, rows: "Sequence[Row]") -> str:
    """Return the rows of an ablation of the run `name` as a page; the first is that of the run as configured."""
    differences = [
        Difference(row.name, Score(row.difference, row.low, row.high), f"to {row.test:.2f}", row.oracle)
        for row in rows[1:]
    ]
    plot = plot_differences(differences, "Difference in W-F1", "variants") if differences else ""
    return render_page("ablation.html.jinja", {"name": name, "rows": rows, "plot": plot})


def _list_differences(scores: Mapping[str, Mapping[str, Any]], oracle: bool) -> list[Difference]:
    return [
        Difference(title, Score(one["b_minus_a"], *one["interval"]), f"p {one['p']:.4f}", oracle)
        for title, one in scores.items()
    ]


def _name_runs(a: Path, b: Path) -> dict[str, str]:
    """Return the names of the folders, and of as many above them as it takes to tell the two apart."""
    parts = a.absolute().parts, b.absolute().parts
    size = next((size for size in range(1, max(map(len, parts))) if parts[0][-size:] != parts[1][-size:]), 1)
    return {run: "/".join(some[-size:]) for run, some in zip("ab", parts, strict=True)}
