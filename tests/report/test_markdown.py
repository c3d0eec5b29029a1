"""report.md: short, the verdict first, and no text acts as markup."""

import re

import pytest

from pipelines.report import markdown


def test_markdown_is_short_and_opens_with_the_verdict(demo_analysis):
    text = markdown.render(demo_analysis)
    assert text.startswith("## ") and text.splitlines()[0].endswith(".")
    assert len(text) < 12_000  # a comment holds 65,536 characters, a reader far fewer
    for task in demo_analysis.tasks:
        assert text.count(f"**{task}**, row") <= 3
    assert f"    {demo_analysis.manifest.command}\n" in text


def test_markdown_shows_the_worst_regression_first(demo_analysis):
    shown = re.findall(r"\*\*code\*\*, row \d+, (\w+)", markdown.render(demo_analysis))
    assert shown == ["worse", "better", "same"]


@pytest.mark.parametrize("text", ["a`b", "``", "`", "x\n```\ny", "<b>|</b>", ""])
def test_a_code_span_cannot_be_left(text):
    span = markdown.code_span(text)
    fence = re.match("`+", span).group()
    assert span.endswith(fence) and "\n" not in span
    assert fence not in re.findall("`+", span[len(fence) : -len(fence)])
