"""The pages in a real browser: quiet, self-contained, in reach of the keyboard, readable, and no wider than a phone."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from erckit.pipeline.ablation import WHOLE, Row
from erckit.pipeline.compare import compare_runs, write_comparison
from erckit.pipeline.config import load_config
from erckit.pipeline.report.comparison import render_ablation
from erckit.pipeline.report.plots import EMOTION_COLOURS
from erckit.pipeline.stages.report import run as report
from PIL import Image

from tests.pipeline.fake_report import BASELINES, draw_answers, make_run, metrics, talk, write_run
from tests.tools.chromium import NAMES, Tab, find_chromium, open_tab

PHONE, DESK = 360, 1280
QUIET = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}


@pytest.fixture(scope="module")
def tab():
    program = find_chromium()
    if program is None:
        missing = f"no browser: none of {', '.join(NAMES)} is installed"
        pytest.fail(missing) if os.environ.get("ERCKIT_REQUIRE_CHROMIUM") else pytest.skip(missing)
    with open_tab(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of each kind: a long conversation, many seeds, oracles and long names among what stands on them."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "talk.yaml").write_text("name: talk\ndata: {path: talk}\n")
    answers = [*talk("d1", 45), *talk("d2"), *talk("a-dialogue-with-a-name-as-long-as-some-corpora-have-them", 12)]
    seeds = {seed: metrics(55.55 + seed / 7, BASELINES | {"gold history": -9.0}) for seed in (1, 2, 3)}
    run = make_run(folder / "talk", answers, seeds, config := load_config(str(folder / "talk.yaml")))
    report(config, run)
    generator = np.random.default_rng(7)
    runs = [[draw_answers(generator) for _ in range(seeds)] for seeds in (2, 3)]
    a, b = write_run(folder / "one" / "run", *runs[0]), write_run(folder / "other" / "run", *runs[1])
    write_comparison(folder, compare_runs(a, b, "test"))
    rows = [
        Row(WHOLE, WHOLE, 2, False, 50.0, 40.0, 0.52, None, 0.0, 0.0, 0.0, 30.0),
        Row("told", WHOLE, 2, True, 60.0, 50.0, 1.0, None, 10.0, 8.0, 12.0, 31.25),
        Row(
            "less of everything that is told of a speaker",
            WHOLE,
            2,
            False,
            49.0,
            39.0,
            1.234,
            20.0,
            -1.0,
            -3.0,
            1.0,
            9.96,
        ),
    ]
    (folder / "parts.html").write_text(render_ablation("talk", rows), encoding="utf-8")
    return {
        "report": run.path("report", "index.html"),
        "comparison": folder / "compare.html",
        "ablation": folder / "parts.html",
    }


@pytest.fixture(params=["report", "comparison", "ablation"])
def page(request, pages) -> Path:
    return pages[request.param]


def test_the_browser_tells_of_what_goes_wrong(tab, tmp_path):
    """That the next tests can fail."""
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; script-src 'unsafe-inline'\">"
    bad = "<script>console.error('no'); missing()</script><img src='http://erckit.invalid/a.png'>"
    (tmp_path / "bad.html").write_text(f"<!doctype html>{policy}{bad}<div style='width:500px'>wide</div>")
    tab.show(tmp_path / "bad.html", width=PHONE)
    assert {event["method"] for event in tab.events} >= QUIET
    assert tab.run("document.documentElement.scrollWidth") > PHONE


@pytest.mark.parametrize("dark", [False, True])
def test_a_page_loads_quietly_and_asks_for_nothing(tab, page, dark):
    tab.show(page, dark=dark)
    tab.run("document.querySelectorAll('button, summary').forEach((one) => one.click())")
    assert [event for event in tab.events if event["method"] in QUIET] == []
    asked = {e["params"]["request"]["url"] for e in tab.events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_page_is_as_wide_as_its_window_and_what_is_wider_scrolls_in_a_box(tab, page, width):
    tab.show(page, width=width)
    tab.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert tab.run("document.documentElement.scrollWidth") == tab.run("innerWidth") == width
    drawn = "[...document.querySelectorAll('.plot text')].map((one) => one.getBoundingClientRect())"
    assert tab.run(f"{drawn}.every((box) => box.left >= 0 && box.right <= innerWidth)")
    wide = "[...document.querySelectorAll('.box')].filter((box) => box.scrollWidth > box.clientWidth)"
    assert tab.run(f"{wide}.every((box) => box.tabIndex === 0 || box.querySelector('[tabindex=\"0\"]'))")
    assert width == DESK or tab.run(f"{wide}.length") > 0


ROWS = """[...document.querySelectorAll('table.sortable')].map((table) => [...table.tBodies].map((body) =>
  [...body.rows].map((row) => [...row.cells].map((cell) => cell.dataset.sort ?? cell.textContent.trim()))))"""


def test_tables_sort_by_every_column_as_python_does_and_back(tab, page):
    tab.show(page)
    before = tab.run(ROWS)
    assert len(before) >= 1 and any(len(body) > 2 for bodies in before for body in bodies)
    for table, bodies in enumerate(before):
        for column in range(len(bodies[0][0])):
            for direction in ("ascending", "descending", "none"):
                click(tab, table, column)
                assert tab.run(f"{head(table, column)}.ariaSort") == direction
                found = tab.run(ROWS)
                assert found[table] == [order(rows, column, direction) for rows in bodies], (column, direction)
                assert found[:table] + found[table + 1 :] == before[:table] + before[table + 1 :]


def test_rows_that_tie_keep_the_order_of_the_last_sort(tab, pages):
    tab.show(pages["comparison"])
    rows = tab.run(ROWS)[-1][0]  # the utterances, many of which share their gold label
    for column in (2, 1):
        click(tab, -1, column)
        rows = order(rows, column, "ascending")
    assert tab.run(ROWS)[-1] == [rows] and len({row[1] for row in rows}) < len(rows)


def test_a_table_is_sorted_with_the_keyboard_and_says_so(tab, page):
    tab.show(page)
    tab.run(f"{head(0, 1)}.querySelector('button').focus()")
    for key, direction in (("Enter", "ascending"), (" ", "descending")):
        tab.press(key)
        assert tab.run(f"{head(0, 1)}.ariaSort") == direction
        assert tab.run(f"{head(0, 1)}.contains(document.activeElement)")
    heads = "[...document.querySelector('table.sortable').tHead.rows[0].cells].map((one) => one.ariaSort)"
    assert tab.run(heads).count("none") == len(tab.run(heads)) - 1


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_tab_key_goes_through_everything_in_order_and_shows_where_it_is(tab, page, width):
    tab.show(page, width=width)
    tab.run("""window.places = [...document.querySelectorAll('a[href], button, summary, [tabindex="0"]')]
      .filter((one) => one.checkVisibility({ contentVisibilityAuto: true, visibilityProperty: true }))""")
    for place in range(tab.run("places.length")):
        tab.press("Tab")
        at = tab.run("""(() => { const one = document.activeElement, style = getComputedStyle(one),
          box = one.getBoundingClientRect();
          return [places.indexOf(one), style.outlineStyle, parseFloat(style.outlineWidth),
            box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth, one.outerHTML]; })()""")
        assert at[0] == place and at[1] == "solid" and at[2] >= 2 and at[3], at
    assert tab.run("places[0].textContent") == "Skip to the content"


def test_the_arrow_keys_go_through_a_timeline_and_the_line_below_says_what_the_table_says(tab, pages):
    tab.show(pages["report"])
    tab.run("document.querySelector('.turn').focus()")
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 39), ("Home", 0)):
        tab.press(key)
        said = tab.run("document.querySelector('.said').textContent")
        row = tab.run(f"[...document.querySelector('.turns').tBodies[0].rows[{place}].cells].map((c) => c.textContent)")
        turn, who, says, answer, _, verdict = (" ".join(cell.split()) for cell in row)
        assert said.startswith(f"Turn {turn}, {who}: {says} – answer {answer.split()[0]} (62 %), {verdict.split()[1]}")
    letters = "(one) => [...one.querySelectorAll('text')].map((text) => text.textContent)"
    turns = tab.run(f"[...document.querySelectorAll('.turn')].slice(0, 2).map({letters})")
    assert turns == [["gla", "cal"], ["gla"]]  # the gold one where it differs


NAMED = {"button", "image", "img", "link", "navigation", "region", "table", "columnheader", "rowheader"}


def test_everything_has_a_name_and_every_reference_a_target(tab, page):
    tab.show(page)
    nodes = tab.ask("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value")) for node in nodes if not node["ignored"]]
    assert [role for role, name in found if role in NAMED and not name] == []
    assert {"image", "link", "region", "table", "button", "main", "banner"} <= {role for role, _ in found}
    references = """['aria-labelledby', 'aria-describedby', 'aria-controls', 'aria-owns', 'href'].flatMap((name) =>
      [...document.querySelectorAll(`body [${name}]`)].flatMap((one) => one.getAttribute(name).split(' '))
      .filter((id) => !document.getElementById(id.replace('#', ''))))"""
    assert tab.run(references) == []


# The text of elements with the colours that it is painted in and upon, as WCAG 2.2 measures contrast.
CONTRASTS = """(() => {
  const read = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const luminance = (colour) => colour.slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const paint = (one) => (one ? over(read(getComputedStyle(one).backgroundColor), paint(one.parentElement))
    : [0, 0, 0, 1]);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let node; (node = walker.nextNode());) {
    const one = node.parentElement, style = getComputedStyle(one);
    if (!node.data.trim() || !one.checkVisibility() || ['SCRIPT', 'title'].includes(one.nodeName)) continue;
    const before = one.previousElementSibling, tile = one.matches('.turn text') && before.nodeName === 'rect';
    const ink = read(one.closest('svg') ? style.fill : style.color);
    const paper = tile ? read(getComputedStyle(before).fill) : paint(one);
    const lights = [luminance(over(ink, paper)), luminance(paper)].sort((a, b) => b - a);
    found.push([(lights[0] + 0.05) / (lights[1] + 0.05), node.data.trim()]);
  }
  return found;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_letter_has_enough_contrast(tab, page, dark):
    tab.show(page, dark=dark)
    tab.run("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert tab.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(20, 25, 30)" if dark else "rgb(255, 255, 255)"
    )
    found = tab.run(CONTRASTS)
    assert len(found) > 50 and max(found)[0] > 12
    assert [(round(ratio, 2), text) for ratio, text in found if ratio < 4.5] == []


def test_targets_are_large_enough_for_a_thumb(tab, page):
    tab.show(page, width=PHONE)
    small = """[...document.querySelectorAll('a[href], button, summary, .turn')].map((one) => [one.outerHTML,
      one.getBoundingClientRect()]).filter(([, box]) => box.width < 24 || box.height < 24).map(([html]) => html)"""
    assert tab.run(small) == []
    low = "[...document.querySelectorAll('nav a, button, summary')].map((one) => one.getBoundingClientRect().height)"
    assert min(tab.run(low)) >= 44


def test_without_scripts_all_is_there(tab, page):
    tab.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.show(page, width=PHONE)
        assert tab.run("document.querySelectorAll('th button').length") == 0
        assert tab.run("document.documentElement.scrollWidth") == PHONE
        assert tab.run("[...document.querySelectorAll('.box')].every((box) => box.tabIndex === 0)")
        assert tab.run("[...document.querySelectorAll('.said')].every((one) => !one.checkVisibility())")
    finally:
        tab.ask("Emulation.setScriptExecutionDisabled", value=False)


def test_only_who_minds_no_motion_gets_it(tab, page):
    for still, expected in ((True, "auto"), (False, "smooth")):
        tab.show(page, still=still)
        assert tab.run("getComputedStyle(document.documentElement).scrollBehavior") == expected


def test_a_picture_of_a_timeline_has_the_colours_of_its_emotions(tab, pages):
    tab.show(pages["report"])
    tab.run("document.querySelector('.timeline').scrollIntoView({ block: 'start' })")
    pixels = np.asarray(Image.open(io.BytesIO(tab.picture())).convert("RGB")).reshape(-1, 3)
    for colour in EMOTION_COLOURS[:2]:  # "glad" and "calm"
        rgb = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert (pixels == rgb).all(axis=1).sum() > 200


def head(table: int, column: int) -> str:
    return f"[...document.querySelectorAll('table.sortable')].at({table}).tHead.rows[0].cells[{column}]"


def click(tab: Tab, table: int, column: int) -> None:
    tab.run(f"{head(table, column)}.querySelector('button').click()")


def order(rows: list[list[str]], column: int, direction: str) -> list[list[str]]:
    """Sort rows by hand: numbers by value, other text by its letters and the numbers in it, what is blank last."""
    if direction == "none":
        return rows
    full, blank = ([row for row in rows if (row[column] in ("", "–")) == empty] for empty in (False, True))
    numbers = [re.match(r"[\[(]*([+−-]?[\d,]*\.?\d+)(?![\w.])", row[column]) for row in full]

    def key(row: list[str]):
        if all(numbers):
            number = re.match(r"[\[(]*([+−-]?[\d,]*\.?\d+)", row[column])
            return float(number[1].replace("−", "-").replace(",", "")) if number else 0.0
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row[column].lower())]

    return sorted(full, key=key, reverse=direction == "descending") + blank
