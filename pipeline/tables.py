"""Tables as Markdown that is read on a terminal too."""

from collections.abc import Sequence


def write_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns but the last filled up to equal widths."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    widths[-1] = 3
    lines.insert(1, ["-" * width for width in widths])
    filled = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in filled)


def format_mean(mean: float, deviation: float | None) -> str:
    """Return a mean over seeds for people, with the deviation where there is one: "40.00 ± 1.23"."""
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def format_interval(interval: Sequence[float], sign: str = "") -> str:
    """Return an interval for people: "[1.20, 3.40]"; with `sign` "+" each end has its sign."""
    low, high = interval
    return f"[{low:{sign}.2f}, {high:{sign}.2f}]"
