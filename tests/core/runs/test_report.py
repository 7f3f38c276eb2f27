"""The report and the model card: whole in themselves, escaped, and true to the events."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.config import parse_yaml
from tutelage.report import model_card, write_report
from tutelage.report.blocks import Table, plain
from tutelage.report.plots import Series, line_plot, thinned, ticks
from tutelage.runs.drawing import text_plot
from tutelage.runs.folder import RunFolder

MakeRun = Callable[..., RunFolder]
SVG = "{http://www.w3.org/2000/svg}"


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_runs_nothing(make_run: MakeRun) -> None:
    html = (make_run().path / "report.html").read_text()
    page = _Page()
    page.feed(html)
    assert page.links == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    assert "<script>alert(1)</script>" in page.text
    assert "url(" not in html
    assert "@import" not in html


def test_figures_are_those_of_the_events(make_run: MakeRun) -> None:
    text = (make_run().path / "report.md").read_text()
    assert "| tokens computed | 600 |" in text
    assert "| tokens per second | 200 |" in text
    assert "| parameters that learn | 10 of 1,000 (1.00%) |" in text
    assert "| stops by itself | no |" in text
    assert "| 6 | 1.25 |" in text
    assert "learning_rate: 0.0002" in text
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \| \`x\`" in text


def test_plots_are_files_that_the_markdown_links(make_run: MakeRun) -> None:
    folder = make_run().path
    links = re.findall(r"\]\((plots/[^)]+)\)", (folder / "report.md").read_text())
    assert links == ["plots/tune-loss.svg"]
    svg = ElementTree.parse(folder / links[0]).getroot()
    lines = svg.findall(f"{SVG}polyline")
    heights = [float(point.split(",")[1]) for point in lines[0].attrib["points"].split()]
    assert len(heights) == 6
    steps = [b - a for a, b in itertools.pairwise(heights)]
    assert all(step == pytest.approx(steps[0], abs=0.2) and step > 0 for step in steps)


def test_a_report_of_a_run_that_only_began_can_be_written(make_run: MakeRun, root: object) -> None:
    run = make_run()
    (run.path / "events.jsonl").unlink()
    run.update(state="failed", reason="the disk is full")
    write_report(run)
    text = (run.path / "report.md").read_text()
    assert "State: failed. the disk is full" in text


def test_a_card_says_how_plain_libraries_load_it(make_run: MakeRun) -> None:
    run = make_run()
    card = model_card(run.record, run.stage("tune"), run.recipe)
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert parse_yaml(front) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["tutelage", "sft", "lora"],
    }
    assert "AutoPeftModelForCausalLM" in body
    assert "| eval\\_loss | 1.25 |" in body
    assert "| rows.jsonl | abc |" in body
    recipe = {**run.recipe, "model": "owner/name"}
    assert "base_model: owner/name" in model_card(run.record, run.stage("tune"), recipe, kind="model")


@settings(deadline=None)
@given(st.text(max_size=30))
def test_a_markdown_cell_never_breaks_its_table(text: str) -> None:
    lines = Table([[text, "x"]], ["a", "b"]).markdown().split("\n")
    assert len(lines) == 3
    assert len(re.findall(r"(?<!\\)\|", lines[2].replace("\\\\", ""))) == 3
    assert not re.search(r"<[a-zA-Z/!]", plain(text))


@settings(deadline=None)
@given(
    st.floats(-1e4, 1e4),
    st.floats(1e-3, 1e6),
    st.integers(2, 10),
)
def test_ticks_enclose_the_range_and_are_even(low: float, width: float, wanted: int) -> None:
    found = ticks(low, low + width, wanted)
    step = found[1] - found[0]
    assert found[0] <= low + step * 1e-6
    assert found[-1] >= low + width - step * 1e-6
    assert len(found) <= wanted + 3


def test_long_series_are_thinned_to_means_that_keep_the_end() -> None:
    points = [(float(x), 3.0) for x in range(5000)]
    found = thinned(points)
    assert len(found) <= 800
    assert found[-1] == points[-1]
    assert {y for _, y in found} == {3.0}


def test_a_plot_of_one_point_or_a_flat_line_is_drawn() -> None:
    for points in ([(1.0, 2.0)], [(1.0, 0.0), (2.0, 0.0)]):
        ElementTree.fromstring(line_plot("<flat> & even", [Series("loss", points)]))


def test_a_falling_line_in_characters_starts_top_left_and_ends_bottom_right() -> None:
    drawn = text_plot([(1.0, 8.0), (2.0, 4.0), (3.0, 0.0)], [(3.0, 0.0)], width=30, height=5).split("\n")
    rows = [line.partition("┤")[2] for line in drawn[:5]]
    assert rows[0][0] > "\u2800"
    assert rows[4].rstrip()[-1] == "●"
    assert rows[0][-1] == " " or len(rows[0]) < len(rows[4])
    assert drawn[0].startswith("8 ")
    assert all(len(line) <= 30 for line in drawn)


def test_answers_and_sections_are_shown_and_escaped(tmp_path):
    run = RunFolder.create(
        tmp_path / "run", "aligned", {"name": "aligned", "stages": [{"name": "ppo", "phase": "ppo"}]}
    )
    run.event("stage_started", stage="ppo", steps=2)
    for step, reward in ((1, 0.5), (2, 1.5)):
        run.event("step", stage="ppo", step=step, steps=2, loss=0.1, reward=reward, kl=0.2 * step, seconds=1.0)
    run.event("samples", stage="ppo", step=2, samples=[{"prompt": "why?", "answer": "<b>because", "reward": 1.5}])
    section = {"title": "Side by side", "text": ["one & two"], "columns": ["model", "reward"], "rows": [["ppo", "1.5"]]}
    run.event("section", stage="ppo", **section)
    write_report(run)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;b&gt;because" in page
    assert "one &amp; two" in page
    assert "ppo: KL from the reference" in page
    assert "| ppo | 1.5 |" in (tmp_path / "run" / "report.md").read_text()
