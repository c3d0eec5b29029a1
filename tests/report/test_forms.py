"""Markdown, terminal, figures and wording: the same analysis in other forms, and no text acts as markup."""

import hashlib
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from pipelines.report import formatting, html, json_report, markdown, plots
from pipelines.report.analysis import analyse
from pipelines.report.terminal import print_summary
from pipelines.scoring.metric import Unit
from tests.report.run_folder import demo_run, line, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    return analyse(demo_run(tmp_path_factory.mktemp("runs") / "demo", rows=80))


def test_markdown_is_short_and_opens_with_the_verdict(analysis):
    text = markdown.render(analysis)
    assert text.startswith("## ") and text.splitlines()[0].endswith(".")
    assert len(text) < 12_000  # a comment holds 65,536 characters, a reader far fewer
    for task in analysis.tasks:
        assert text.count(f"**{task}**, row") <= 3
    assert f"    {analysis.manifest.command}\n" in text


def test_every_form_says_how_answers_are_compared(analysis):
    page, comment, data = html.render(analysis), markdown.render(analysis), json.loads(json_report.render(analysis))
    for name, said in (
        ("sentiment", "Case, white space, quotes around a label"),
        ("summaries", "of scripts without spaces between words"),
    ):
        assert said in data["tasks"][name]["scoring"] and said in page and said in comment
    assert data["tasks"]["code"]["scoring"] == ""


def test_markdown_shows_the_worst_regression_first(analysis):
    shown = re.findall(r"\*\*code\*\*, row \d+, (\w+)", markdown.render(analysis))
    assert shown == ["worse", "better", "same"]


@pytest.mark.parametrize("text", ["a`b", "``", "`", "x\n```\ny", "<b>|</b>", ""])
def test_a_code_span_cannot_be_left(text):
    span = markdown._code(text)
    fence = re.match("`+", span).group()
    assert span.endswith(fence) and "\n" not in span
    assert fence not in re.findall("`+", span[len(fence) : -len(fence)])


def test_hostile_answers_leave_the_terminal_sane(tmp_path):
    answer = "[red]\x1b[31m\x07\u202e yes\nno"
    sides = [[line("mood", n, "p", ["a", "b"][n % 2], answer) for n in range(2)]] * 2
    out = io.StringIO()
    print_summary(analyse(write_run(tmp_path / "r", {"mood": "exact_match"}, *sides)), Console(file=out, width=200))
    text = out.getvalue()
    assert "[red]␛[31m␇⟨U+202E⟩ yes no" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e"}


def test_the_terminal_table_has_every_task(analysis):
    out = io.StringIO()
    print_summary(analysis, Console(file=out, width=140))
    for name, task in analysis.tasks.items():
        assert re.search(
            rf"^{name} .*{re.escape(formatting.number(task.comparison.tuned, task.unit))} .*{task.verdict}",
            out.getvalue(),
            re.MULTILINE,
        )


def test_figures_are_svg_with_text_and_without_a_date(analysis):
    for svg in (plots.dot_plot(list(analysis.tasks.values())), plots.loss_curve(analysis.training)):
        root = ET.fromstring(svg)
        assert root.tag.endswith("svg") and [node for node in root.iter() if node.tag.endswith("text")]
        assert "metadata" not in svg and "date" not in svg.lower() and "#01010" not in svg
    assert plots.dot_plot(list(analysis.tasks.values())).count("sentiment") >= 1


def test_a_long_run_is_drawn_with_few_points():
    steps, losses = plots._means([(step, 2.0) for step in range(1, 5001)], most=120)
    assert len(steps) == len(losses) <= 120 and set(losses) == {2.0}
    assert plots._means([], most=120) == ([], [])


@pytest.mark.parametrize(
    "made, expected",
    [
        (formatting.signed(3.14), "+3.1"),
        (formatting.signed(-3.14), "−3.1"),
        (formatting.signed(-0.04), "0.0"),
        (formatting.signed(-0.0004, Unit.NATS_PER_TOKEN), "0.000"),
        (formatting.interval((-1, 2)), "−1.0 to +2.0"),
        (formatting.score(None, Unit.PERCENT, True), "not scored"),
        (formatting.score(0.0, Unit.PERCENT, True), "wrong"),
        (formatting.score(100.0, Unit.PERCENT, True), "right"),
        (formatting.score(41.666, Unit.POINTS, False), "41.7"),
        (formatting.p_value(0.0004), "< 0.001"),
        (formatting.p_value(0.05), "0.050"),
        (formatting.count(1, "row"), "1 row"),
        (formatting.count(1200, "row"), "1,200 rows"),
        (formatting.duration(0.44), "0.4 s"),
        (formatting.duration(59.6), "1 min 0 s"),
        (formatting.duration(3599.9), "1 h 0 min"),
        (formatting.joined(["a"]), "a"),
        (formatting.joined(["a", "b", "c"]), "a, b and c"),
        (formatting.one_line("a\n b\tc", 10), "a b c"),
        (formatting.one_line("abcdef", 4), "abc…"),
        (formatting.one_line("中文\n字", 6), "中文…"),
        (formatting.one_line("हिन्दी", 2), "हि…"),
        (formatting.printable("a\x00b\r\nc\td\x7f\ud800"), "a␀b\nc\td⟨U+007F⟩⟨U+D800⟩"),
    ],
)
def test_formatting(made, expected):
    assert made == expected


SCHEMAS = {4: "48e0ca4cf20a9151f8e31ae690f756f1edffb4f1a6b22312bd86cf5e190add4f"}
"""sha256 of the schema of each format_version: a change of the form without a new number fails here."""


def test_the_json_form_is_the_shipped_schema_and_its_number_is_raised_by_a_change():
    assert (ROOT / "docs" / "report.schema.json").read_text() == json_report.schema()
    known = hashlib.sha256(json_report.schema().encode()).hexdigest()
    assert SCHEMAS[json_report.FORMAT_VERSION] == known, "raise FORMAT_VERSION, and write docs/report.schema.json again"


def test_every_report_fits_the_schema(tmp_path):
    schema = json.loads(json_report.schema())
    jsonschema.validate(json.loads(json_report.render(analyse(demo_run(tmp_path / "r", rows=40)))), schema)
