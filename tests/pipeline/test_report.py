"""The report page: it says what the artefacts say, marks oracles, escapes text, and never changes by itself."""

import base64
import hashlib
import re
from typing import Any

import numpy as np
import pytest
from erckit.pipeline.config import load_config
from erckit.pipeline.report.page import make_environment
from erckit.pipeline.stages.report import run as report
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tests.pipeline.fake_report import BASELINES, LABELS, Page, label_of, make_run, metrics, say, talk


@pytest.fixture
def make_page(tmp_path):
    """A function that writes a run folder and its page, and returns the page as HTML."""

    def make(answers=None, by_seed=None, *settings: str) -> str:
        (tmp_path / "talk.yaml").write_text("name: talk\ndata: {path: talk}\n")
        config = load_config(str(tmp_path / "talk.yaml"), settings)
        run = make_run(
            tmp_path / "runs" / "talk", answers or [*talk("d1"), *talk("d2")], by_seed or {1: metrics()}, config
        )
        assert report(config, run) == f"the page {tmp_path}/runs/talk/report/index.html"
        assert [path.name for path in run.path("report").iterdir()] == ["index.html"]
        html = run.path("report", "index.html").read_text(encoding="utf-8")
        assert str(tmp_path) not in html
        return html

    return make


def test_the_numbers_of_the_metrics_stand_on_the_page(make_page):
    text = Page(make_page()).text

    assert "talk, the model all-MiniLM-L6-v2 (embedded) with a task adapter (LoRA) reaches a test W-F1 of 55.55" in text
    for number in ("[53.05, 58.80]", "58.55", "56.80", "53.80", "21.43", "43.21", "1,234", "4,321", "8,765", "43.21"):
        assert number in text, number
    assert "+12.34 [11.34, 13.34]" in text and "−7.50 [−8.50, −6.50]" in text and "−0.50 [−1.50, 0.50]" in text
    assert "17 repaired: typographic quotes." in text and "One dialogue fewer than published." in text
    assert "Prompts without their oldest turns, to keep the token budget: 23." in text
    assert "1 of 2 speakers do not occur in train, so nothing is known of them; they say 2 of the 6 utterances" in text
    assert "1 min 15 s" in text and "0.50 GiB" in text and "float32" in text and "0123abcd" in text
    assert text.count("2,345 37.89 [36.78, 38.97] 28.91 [27.65, 29.86]") == 2
    assert (
        "shift: another emotion than before 2,345" in text
        and "turns 2 to 5 2,345" in text
        and "turns 6 to 10" not in text
    )
    assert text.count("15.43 [14.32, 17.65] 0.765 [0.654, 0.876]") == 1 + len(BASELINES)
    assert "31.25 at step 40, was kept" in text  # the first of two equally good ones, as the trainer keeps it


def test_micro_f1_without_neutral_stands_on_the_page_where_it_was_measured(make_page):
    found = metrics()
    assert "micro F1" not in Page(make_page(None, {1: found})).text
    found["splits"]["test"]["systems"]["model"]["micro_f1_without_neutral"] = 12.21
    assert "micro F1 without neutral 12.21" in Page(make_page(None, {1: found})).text


def test_the_page_says_which_baselines_are_beaten_and_which_not(make_page):
    text = Page(make_page()).text

    assert "It beats majority class (+12.34" in text
    assert "It is not distinguishable from TF-IDF + logistic regression (−0.50" in text
    assert "It is worse than frozen encoder + logistic regression (−7.50" in text
    none = Page(make_page(None, {1: metrics(leads={"majority": 0.5, "tfidf": -9.0})})).text
    assert "It beats none of the baselines." in none and "It is worse than TF-IDF" in none
    sure = Page(make_page(None, {1: metrics(leads={"majority": 9.0})})).text
    assert "It is distinguishable from every baseline." in sure and "It is worse than none of the baselines." in sure


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "</pre></details><b>", '" onload="x', "&lt;b&gt;", "{{ 7 * 7 }}"]
)
def test_text_of_the_corpus_is_text_on_the_page(make_page, text):
    answers = [say("<i>d</i>", 0, text, "glad", "calm"), say("<i>d</i>", 1, "Yes.", "calm", None, prompt=text)]
    page, plain = Page(make_page(answers)), Page(make_page())

    assert text in page.inside("table") and text in page.inside("pre") and "<i>d</i>" in page.inside("h3")
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}  # no element that is not ours
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1))
def test_a_prompt_stands_exactly_as_asked(text):
    asked = say("d", 0, "Yes.", "glad", None, prompt=text)
    html = part("conversations.html.jinja", conversations=[], prompts=[asked], labels=LABELS)

    # As a browser reads it: the first line break of a pre is dropped.
    assert Page(html).inside("pre") == "\n" + text


def test_whatever_an_oracle_touches_bears_the_badge(make_page):
    fair = Page(make_page())
    assert fair.text.count("ORACLE") == 0 and "None: no number on this page comes from a system" in fair.text

    leads = BASELINES | {"gold history": -9.0}
    told = Page(make_page(None, {1: metrics(leads=leads)}))
    title = "the model, told gold recent emotions"
    assert told.inside("svg").count("oracle") == 1 and f"{title} (oracle) 64.55" in label_of(told, "W-F1 on test")
    # Both tables, the sentence below the verdicts and the list of oracles; plots have a badge of their own.
    assert told.text.lower().count(f"{title} oracle") == 4
    assert told.text.count("ORACLE") == 4 and "ORACLE" not in told.inside("h2")

    answers = [*talk("d1", oracle=True), *talk("d2", oracle=True)]
    gold = Page(make_page(answers, {1: metrics(model=True)}, "prompts.recent_emotions=gold"))
    assert "All answers on this page are those of an oracle. ORACLE" in gold.text
    assert "55.55 ORACLE" in gold.text and "It beats ORACLE majority class" in gold.text
    assert gold.inside("h3").count("ORACLE") == 2 and gold.inside("summary").count("ORACLE") == 3
    assert gold.inside("h2").count("ORACLE") == 3 and gold.inside("figcaption").count("ORACLE") == 4
    assert gold.inside("svg").count("oracle") == 3 and "(oracle)" in label_of(gold, "Precision")
    assert "on test (oracle), percent: 38: 22, of 765; 99: 100, of 1 utterances." in label_of(gold, "Share of right")


def test_unlabelled_utterances_are_answered_and_marked(make_page):
    answers = [say("d1", 0, "Who knows?", "glad", None), say("d1", 1, "I do.", "calm", "calm"), *talk("d2", wrong=3)]
    page = Page(make_page([*answers, say("d3", 0, "Nobody.", "calm", None)]))

    assert "2 of the 6 utterances of test have no gold emotion" in page.text
    assert "1 of 1 labelled turns right" in page.text and "0 of 0 labelled turns right" in page.text
    none = Page(make_page([say("d1", 0, "Who knows?", "glad", None)]))
    assert "0 of 0 labelled turns right." in none.text and "errs much" not in none.text
    assert "62 % – no gold" in page.text and "62 % calm ✓ right" in page.text and "62 % calm ✗ wrong" in page.text


def test_several_seeds_stand_with_mean_deviation_and_interval(make_page):
    scores = [50.0, 53.5, 54.75]
    # The lead over TF-IDF is sure in two of three seeds, so the verdict is that it is not.
    leads = [BASELINES | {"tfidf": lead} for lead in (3.0, 0.5, 4.0)]
    found = {7 + place: metrics(score, leads[place]) for place, score in enumerate(scores)}
    text = Page(make_page(None, found, "seed=7")).text

    mean, deviation = np.mean(scores), np.std(scores, ddof=1)
    half = 4.302653 * deviation / np.sqrt(3)  # Student's t for two degrees of freedom, from a printed table
    assert f"reaches a test W-F1 of {mean:.2f} on average over 3 seeds (standard deviation {deviation:.2f})" in text
    assert f"Mean {mean:.2f} {mean + 3:.2f}" in text and f"Standard deviation {deviation:.2f} {deviation:.2f}" in text
    assert f"[{mean - half:.2f}, {mean + half:.2f}]" in text
    assert "It is not distinguishable from TF-IDF" in text and "(beaten with 2 of 3 seeds)" in text
    assert all(f"{7 + place} {score:.2f}" in text for place, score in enumerate(scores))
    assert "erckit run talk.yaml --seeds 3" in text
    answers = [*talk("d1"), *talk("d2")]
    gold, found = [answer.gold for answer in answers], [answer.label for answer in answers]
    assert f"All together {100 * f1_score(gold, found, average='weighted'):.2f} [" in text


def test_a_temporary_memory_is_told_with_what_it_keeps_for_whom(make_page):
    plain = Page(make_page(None, None)).text
    assert "beside a memory" not in plain
    text = Page(make_page(None, None, "predict.memory=true", "memory.window=4", "memory.scope=session")).text
    assert "On dev and test they show the last 4 alone, beside a memory." in text
    assert (
        "what was said and the emotion are written into low-rank factors over the model, one set for each session"
        in text
    )
    assert "The emotions written are the model's own answers." in text and "annotated ones" not in text
    text = Page(make_page(None, None, "predict.memory=true", "memory.content=emotion", "memory.oracle=true")).text
    assert "the emotion is written" in text and "The emotions written are the annotated ones" in text


def test_answers_of_another_adapter_come_without_a_training_curve(make_page):
    text = Page(make_page(None, None, "predict.adapter=adapters/mine")).text

    assert "This run trained nothing: the answers come from the adapter in adapters/mine" in text
    assert "was kept" not in text and "kept checkpoint" not in text and "In training they are gold" not in text


def test_long_conversations_are_cut_and_say_so(make_page):
    page = Page(make_page(talk("long", 45)))

    assert "The first 40 of its 45 turns are shown." in page.text and "44 of 45 labelled turns right" in page.text
    assert "Line 39 of long." in page.text and "Line 40 of long." not in page.inside("table")


def test_nothing_but_sections_asked_for_are_shown(make_page):
    page = Page(make_page(None, None, "report.conversations=0", "report.prompts=0"))

    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"} - {"#main"}
    places = {f"#{attributes['id']}" for tag, attributes in page.tags if tag == "section"}
    assert (
        links
        == places
        == {f"#{name}" for name in "result protocol emotions groups confidence training reproduce".split()}
    )


def test_the_page_is_well_formed_accessible_and_needs_nothing_else(make_page):
    page = Page(html := make_page())

    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    references = [value for _, a in page.tags for key, value in a.items() if key in ("src", "href", "xlink:href")]
    assert all(value == "data:," or value[1:] in ids for value in references)
    assert not re.search(r"@import|url\((?!#)", html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in html and "default-src 'none';" in html
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert all(a.get("role") in ("img", "group") and a.get("aria-label") for tag, a in page.tags if tag == "svg")
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    tables = [tag for tag, _ in page.tags if tag in ("table", "caption")]
    assert tables == ["table", "caption"] * (len(tables) // 2)
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for _, a in page.tags if a.get("role") == "region")
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= set(re.findall(r"(--[\w-]+):", html))


def test_equal_runs_make_equal_pages(make_page):
    assert make_page() == make_page()


def part(template: str, **findings: Any) -> str:
    return make_environment(findings["labels"]).get_template(template).render(findings)
