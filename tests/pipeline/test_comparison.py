"""The pages of comparisons and ablations: they say what was found, and mark oracles."""

from dataclasses import replace

import numpy as np
import pytest
from erckit.pipeline.ablation import WHOLE, Row
from erckit.pipeline.compare import compare_runs
from erckit.pipeline.metrics import TITLES
from erckit.pipeline.report.comparison import render_ablation, render_comparison
from erckit.pipeline.report.plots import plot_differences
from erckit.pipeline.report.systems import Difference, Score

from tests.pipeline.fake_report import LABELS, Page, draw_answers, label_of, write_run


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What is found of a run with two seeds and an oracle with three, of the same name in different folders."""
    folder, generator = tmp_path_factory.mktemp("runs"), np.random.default_rng(3)
    fair, told = (
        [[replace(one, oracle=oracle, text="<b>So</b>") for one in draw_answers(generator)] for _ in range(seeds)]
        for seeds, oracle in ((2, False), (3, True))
    )
    a, b = write_run(folder / "a" / "talk", *fair), write_run(folder / "b" / "talk", *told)
    return compare_runs(a, b, "test")


def test_the_numbers_of_a_comparison_stand_on_its_page(findings):
    page = Page(render_comparison(findings, TITLES))
    text = page.text.replace("−", "-")

    assert "How far apart are a/talk and b/talk?" in page.inside("h1")
    assert "23 labelled utterances in 6 dialogues" in text
    for title, one in [*((TITLES[name], one) for name, one in findings["scores"].items()), *findings["f1"].items()]:
        cells = [title]
        for run in "ab":
            low, high = one[f"{run}_interval"]
            cells.append(f"{one[run]:.2f} ± {one[f'{run}_deviation']:.2f} [{low:.2f}, {high:.2f}]")
        low, high = one["interval"]
        cells.append(f"{one['b_minus_a']:+.2f} [{low:.2f}, {high:.2f}] {one['p']:.4f}")
        assert " ".join(cells) in text
        assert f"{title} (oracle) {one['b_minus_a']:+.2f}, {low:+.2f} to {high:+.2f}" in " ".join(
            a.get("aria-label") or "" for tag, a in page.tags if tag == "svg"
        )
    for label, row in zip(LABELS, findings["answers"], strict=True):
        assert f"{label} {' '.join(f'{count:.1f}'.removesuffix('.0') for count in row)} " in text
    for one in findings["changes"]:
        shown = f"Ada: <b>So</b> {one['dialogue']}, turn {one['turn'] + 1} {one['gold']} {one['b_minus_a']:+.2f}"
        answers = " ".join(f"{one[run]['label']} {one[run]['gold_probability']:.2f}" for run in "ab")
        assert f"{shown} {answers}" in text


def test_an_oracle_is_told_wherever_it_is_compared(findings):
    page = Page(render_comparison(findings, TITLES))
    assert "Run B is an oracle." in page.text and "Run A is an oracle." not in page.text
    assert page.inside("h2").count("ORACLE") == 4 and page.inside("figcaption").count("ORACLE") == 5
    fair = Page(render_comparison(findings | {"b": findings["b"] | {"oracle": False}}, TITLES))
    assert "ORACLE" not in fair.text and "oracle" not in fair.text


@pytest.mark.parametrize(
    ("low", "high", "words"), [(-1.0, 2.0, "the interval holds 0,"), (0.5, 2.0, "the interval does not hold 0,")]
)
def test_the_page_says_whether_chance_could_do_it(findings, low, high, words):
    scores = findings["scores"] | {"w_f1": findings["scores"]["w_f1"] | {"interval": (low, high)}}
    assert words in Page(render_comparison(findings | {"scores": scores}, TITLES)).text


def test_a_forest_plot_says_what_it_draws_and_colours_what_is_sure():
    rows = [Difference("sure", Score(-2.5, -3.0, -0.5)), Difference("told", Score(1.0, -1.0, 2.0), "p 0.4", True)]
    svg = plot_differences(rows, "B minus A", "scores")

    said = "B minus A with 95 % intervals: sure -2.50, -3.00 to -0.50; told (oracle) +1.00, -1.00 to +2.00."
    assert f'aria-label="{said}"' in svg and ">−2.50<" in svg and ">+1.00, p 0.4<" in svg
    assert "var(--accent)" in svg and "var(--accent)" not in plot_differences(rows[1:], "B minus A", "scores")


def test_the_rows_of_an_ablation_stand_on_its_page():
    rows = [
        Row(WHOLE, WHOLE, 2, False, 50.0, 40.0, 0.52, 38.5, 0.0, 0.0, 0.0, 30.0),
        Row("told", WHOLE, 2, True, 60.0, 50.25, 1.0, None, 10.25, 8.0, 12.0, 31.25),
        Row("<less>", WHOLE, 2, False, 49.0, 39.0, 1.234, 20.0, -1.0, -3.0, 1.0, 9.96),
    ]
    page = Page(render_ablation("talk", rows))

    assert "reaches a test W-F1 of 40.00 on average over 2 seeds (deviation 0.52)" in page.text
    assert f"{WHOLE} 2 50.00 40.00 ± 0.52 38.50 – – 30.0" in page.text
    assert "told ORACLE 2 60.00 50.25 ± 1.00 – +10.25 [8.00, 12.00] 31.2" in page.text
    assert "<less> 2 49.00 39.00 ± 1.23 20.00 −1.00 [−3.00, 1.00] 10.0" in page.text
    assert "ORACLE" in page.inside("figcaption") and "ORACLE" not in Page(render_ablation("talk", rows[::2])).text
    alone = Page(render_ablation("talk", rows[:1]))  # no variant changes anything
    assert f"{WHOLE} 2 50.00 40.00" in alone.text and "svg" not in {tag for tag, _ in alone.tags}
    assert "Against the configured" in page.text and "Against" not in page.text.replace("Against the configured", "")
    other = Page(
        render_ablation("talk", [*rows, Row("least", "<less>", 1, False, 9.0, 8.0, None, None, -1.0, -2.0, 0.0, 9.0)])
    )
    assert "least 1 9.00 8.00 – −1.00 [−2.00, 0.00] <less> 9.0" in other.text and "what the table says" in other.text
    assert "told (oracle) +10.25, +8.00 to +12.00; <less> -1.00" in label_of(page, "Difference in W-F1")
