"""What users see: one line at a time, and progress only where it takes long."""

import io
import os
import subprocess
import sys

import pytest
from erckit.pipeline import console
from erckit.pipeline.console import format_memory, format_seconds, progress
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def work(clock, seconds: float, count: int, total: int | None, what: str = "prompts") -> list[int]:
    done = []
    for item in progress(range(count), total, what):
        clock[0] += seconds
        done.append(item)
    return done


def test_short_work_is_silent(clock, capsys):
    assert work(clock, 0.19, 10, 10) == list(range(10))
    assert capsys.readouterr() == ("", "")


def test_long_work_says_how_far_it_is_at_most_every_15_seconds(clock, capsys):
    assert work(clock, 1 / 64, 3_840, 3_840, "train prompts") == list(range(3_840))  # a minute
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "train prompts: 128 of 3,840, 58 s left",
        "train prompts: 1,088 of 3,840, 43 s left",
        "train prompts: 2,048 of 3,840, 28 s left",
        "train prompts: 3,008 of 3,840, 13 s left",
    ]


def test_without_a_total_it_counts(clock, capsys):
    work(clock, 2, 2, None)
    assert capsys.readouterr().err == "prompts: 1\n"


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3), 3, "prompts", quiet_seconds=0)) == [0, 1, 2]
    assert "prompts:" in terminal.getvalue() and "\r" in terminal.getvalue()


@pytest.mark.parametrize(
    "seconds, exact, coarse",
    [
        (0, "0.0 s", "0 s"),
        (12.34, "12.3 s", "12 s"),
        (59.96, "1 min 0 s", "1 min"),
        (192, "3 min 12 s", "3 min"),
        (3599.9, "1 h 0 min", "1 h 0 min"),
        (4800, "1 h 20 min", "1 h 20 min"),
    ],
)
def test_durations_as_people_write_them(seconds, exact, coarse):
    assert format_seconds(seconds) == exact
    assert format_seconds(seconds, coarse=True) == coarse


def test_memory_as_people_write_it():
    assert [format_memory(mib) for mib in (9.6, 1023, 1024, 2500)] == ["10 MiB", "1023 MiB", "1.0 GiB", "2.4 GiB"]


@given(st.floats(0, 1e6))
def test_a_duration_reads_back_to_within_its_last_digit(seconds):
    unit = {"s": 1, "min": 60, "h": 3600}
    words = format_seconds(seconds).split()
    value = sum(float(number) * unit[name] for number, name in zip(words[::2], words[1::2], strict=True))
    assert abs(value - seconds) <= {"s": 0.51, "min": 60}[words[-1]]


def test_libraries_are_quiet_and_our_warnings_are_not():
    code = """
import logging, os, sys, types, warnings
from erckit.pipeline.console import quiet_libraries
quiet_libraries()
logging.getLogger("transformers.modeling_utils").warning("a load report")
logging.getLogger("transformers.modeling_utils").error("a real error")
logging.getLogger("erckit.data").warning("ours, logged")
for name in ("torch.utils.data", "torchbearer", "erckit.data.x"):
    exec("import warnings; warnings.warn('from ' + __name__)", {"__name__": name})
sys.stderr.write(os.environ["HF_HUB_DISABLE_PROGRESS_BARS"])
"""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)

    assert "a load report" not in done.stderr and "from torch.utils.data" not in done.stderr
    for kept in ("a real error", "ours, logged", "from erckit.data.x", "from torchbearer"):
        assert kept in done.stderr
    assert done.stderr.endswith("1")
