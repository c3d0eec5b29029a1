"""Completions with reasoning: the answer is scored, the reasoning is shown folded, cut ones are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.report import Analysis, analyse, html, json_report, markdown
from pipelines.report.columns import task_columns
from tests.report.run_folder import line, write_lines, write_page, write_run

THOUGHT = "<b>It</b> says\n“superb”, so positive or negative? ``` `"


def answer(row: int, label: str, completion: str, reasoning: str | None = None, **values: Any) -> dict[str, Any]:
    tokens = 0 if reasoning is None else 10 + len(reasoning.split())
    values = {"num_generated_tokens": tokens + 2, "num_reasoning_tokens": tokens, "reasoning": reasoning, **values}
    return line("mood", row, f"Row {row}?", label, completion, **values)


def cut(row: int, label: str) -> dict[str, Any]:
    return answer(row, label, "", THOUGHT, reasoning_cut=True, finish_reason="length")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """12 of 50 base completions are cut inside their reasoning, three end after it; the tuned ones are short."""
    labels = ["positive" if row % 2 else "negative" for row in range(50)]
    base = [
        cut(row, label)
        if row >= 38
        else answer(row, label, "", THOUGHT)
        if row >= 35
        else answer(row, label, "positive", THOUGHT, reference_reasoning="From the row.")
        for row, label in enumerate(labels)
    ]
    tuned = [answer(row, label, label, f"Thus {label}") for row, label in enumerate(labels)]
    folder = write_run(tmp_path / "r", {"mood": "exact_match"}, base, tuned)
    prompts = {"title": "Free", "prompt": "Why?"}
    write_lines(
        folder / "base" / "sample_prompts.jsonl",
        [{**prompts, "completion": "", "reasoning": "a", "reasoning_cut": True}],
    )
    write_lines(folder / "tuned" / "sample_prompts.jsonl", [{**prompts, "completion": "So.", "reasoning": "<i>b</i>"}])
    return folder


@pytest.fixture
def analysis(run: Path) -> Analysis:
    return analyse(run)


def test_cut_reasoning_is_counted_with_advice(analysis: Analysis) -> None:
    task = analysis.tasks["mood"]
    assert task.reasoning is not None
    assert (task.reasoning.base.completions, task.reasoning.base.cut, task.reasoning.base.unanswered) == (50, 12, 3)
    assert task.reasoning.tuned.cut == task.reasoning.tuned.unanswered == 0
    assert (
        "12 of 50 base completions and 0 of 50 tuned completions were cut at 21 tokens, inside their reasoning: they "
        "have no answer, which counts as wrong. Raise max_reasoning_tokens."
    ) in task.caveats
    assert "Base ends 3 of 50 completions after its reasoning, without an answer." in task.caveats
    assert not any("empty" in caveat or "truncated" in caveat for caveat in task.caveats), "they are the same ones"
    (column,) = [column for column in task_columns(("a", "b"), [task]) if column.key == "reasoning"]
    assert column.text(task) == "19 → 12"


def test_without_reasoning_nothing_mentions_it(tmp_path: Path) -> None:
    completions = [[line("mood", row, "p", "yes", "no") for row in range(2)]] * 2
    plain = analyse(write_run(tmp_path / "r", {"mood": "exact_match"}, *completions))
    assert plain.tasks["mood"].reasoning is None
    for text in (html.render(plain).partition("<script>")[0].partition("</style>")[2], markdown.render(plain)):
        assert "easoning" not in text


def test_a_run_whose_base_is_always_cut_has_a_report(tmp_path: Path) -> None:
    completions = [[cut(row, "yes") for row in range(3)], [answer(row, "yes", "yes", "a") for row in range(3)]]
    assert analyse(write_run(tmp_path / "r", {"mood": "exact_match"}, *completions)).tasks["mood"].comparison.base == 0


def test_every_form_shows_answer_and_reasoning(run: Path, analysis: Analysis) -> None:
    data = json.loads(json_report.render(analysis))
    assert data["tasks"]["mood"]["reasoning"]["base"]["cut"] == 12
    example = data["examples"][20]
    assert (example["base"], example["base_reasoning"], example["base_reasoning_cut"]) == ("positive", THOUGHT, False)
    assert example["reference_reasoning"] == "From the row."
    assert data["examples"][49]["base_reasoning_cut"] and data["sample_prompts"][0]["tuned_reasoning"] == "<i>b</i>"
    text = markdown.render(analysis)
    assert "- base: (no answer: cut inside the reasoning) <details><summary>reasoning</summary>" in text
    assert "| Reasoning tokens |" in text
    output = CliRunner().invoke(main, ["examples", str(run), "--better"]).output
    assert "(no answer: cut inside the reasoning)" in output and "(no answer after the reasoning)" in output
    assert "reasoning: <b>It</b> says" in output and "reasoning: Thus positive" in output


def test_the_page_folds_and_escapes_the_reasoning(tmp_path: Path, analysis: Analysis, opened) -> None:  # type: ignore[no-untyped-def]
    with opened(write_page(tmp_path, analysis)) as page:
        page.press("#more", "Enter")  # a click may miss it while the layout moves
        first = page.locator("#mood-49")
        thought = first.locator(".base .thought .text")
        assert not thought.is_visible()
        first.locator(".base .thought summary").click()
        assert thought.is_visible() and thought.inner_text() == THOUGHT
        assert page.locator(".thought b, .thought i").count() == 0
        assert "no answer" in first.locator(".base").inner_text()
        # What is rated, searched and compared are the answers.
        assert page.evaluate("readPair(document.querySelector('#mood-20')).base") == "positive"
        page.click("#rate-start")
        assert THOUGHT not in page.inner_text("#rate-item")
