"""The tables of the terminal at 60, 80 and 100 columns: no number or word is broken, no line too long."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipelines.commands.preview import PreviewRows, print_lengths
from pipelines.data.examples import HeldOutRows
from pipelines.report.analysis import analyse
from pipelines.report.formatting import interval, number, signed
from pipelines.report.ratings import Preference
from pipelines.report.sweep import Estimate, Sweep, VariantResult, print_sweep, sweep_rows
from pipelines.report.tables import Column, cell, print_table
from pipelines.report.terminal import print_preference, print_runs, print_summary
from pipelines.scoring.statistics import compare
from tests.report.run_folder import line, write_lines, write_run

WIDTHS = (60, 80, 100)
NAMES = {
    "plain": ["sentiment", "summaries", "code"],
    "long": ["customer_support_escalations_2024_quarter_3_v12", "b" * 60, "c"],
    "wide": ["感情分析と要約の混合タスク第三版", "번역", "ترجمة"],
}


@pytest.fixture(scope="module", params=NAMES)
def analysis(request, tmp_path_factory):
    """Three tasks and four retention evals, one of them a divergence, with long numbers."""
    names = NAMES[request.param]
    base, tuned = [], []
    for task in names:
        for row in range(60):
            base.append(
                line(task, row, f"p{row}", f"right {row}", "wrong answer altogether" if row % 7 else f"right {row}")
            )
            tuned.append(line(task, row, f"p{row}", f"right {row}", f"right {row}" if row % 5 else ""))
    folder = write_run(
        tmp_path_factory.mktemp("runs") / f"{names[0][:30]} run",
        dict(zip(names, ("exact_match", "rouge", "chrf"), strict=True)),
        base,
        tuned,
    )
    kinds = [
        ("knowledge", "multiple_choice", ""),
        ("text", "text_nll", ""),
        ("general answers", "kl", ""),
        (f"first/{names[0]}", "task", "rouge"),
    ]
    for side, shift in (("base", 0), ("tuned", 12345.678)):
        write_lines(
            folder / "retention" / f"{side}.jsonl",
            [
                {
                    "eval": name,
                    "kind": kind,
                    "metric": metric,
                    "item": n,
                    "chance_accuracy": 25.0 if kind == "multiple_choice" else None,
                    "score": 100.0 * (n % 2) if kind == "multiple_choice" else shift + n,
                }
                for name, kind, metric in kinds
                for n in range(1, 40)
            ],
        )
    return analyse(folder)


def printed(width, show, *arguments):
    out = io.StringIO()
    show(*arguments, Console(file=out, width=width))
    return out.getvalue()


def assert_unbroken(text, width, expected):
    """Every line fits, and each of `expected` is on one line."""
    lines = text.splitlines()
    assert all(cell_len(line) <= width for line in lines), max(lines, key=cell_len)
    squeezed = [re.sub(r" +", " ", line) for line in lines]
    for content in expected:
        assert any(content in line for line in squeezed), f"{content!r} at {width}:\n{text}"


def numbers_of(result):
    comparison = result.comparison
    values = (
        number(comparison.base, result.unit),
        number(comparison.tuned, result.unit),
        signed(comparison.delta, result.unit),
        interval(comparison.ci95, result.unit),
    )
    return [f"{comparison.n:,}", *values, *(result.verdict or "").split()]


def words_of(names):
    return [word for name in names for word in cell(name).plain.split()]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_summary(analysis, width):
    text = printed(width, print_summary, analysis)
    results = [*analysis.tasks.values(), *analysis.retention.values()]
    assert_unbroken(text, width, [number for result in results for number in numbers_of(result)])
    assert_unbroken(text, width, words_of([result.name for result in results] + [result.title for result in results]))
    assert_unbroken(text, width, ["divergence"])


@pytest.mark.parametrize("width", WIDTHS)
def test_many_runs(analysis, width):
    text = printed(width, print_runs, [analysis, analysis])
    assert_unbroken(text, width, [number for task in analysis.tasks.values() for number in numbers_of(task)])
    assert_unbroken(text, width, words_of([analysis.manifest.name, *analysis.tasks]))


@pytest.mark.parametrize("width", WIDTHS)
def test_two_models_with_long_names(analysis, width):
    models = ("smollm2-135m-instruct-before-everything", "微調整済みモデル第二版")
    text = printed(width, print_summary, replace(analysis, models=models))
    assert_unbroken(text, width, [number for task in analysis.tasks.values() for number in numbers_of(task)])


@pytest.mark.parametrize("width", WIDTHS)
def test_a_preference(analysis, width):
    comparison = compare([0.0] * 400, [100.0, -100.0] * 200, binary=False)
    preference = Preference(["anna", "ben"], {"base": 12345, "tie": 2}, comparison, 0.812, 77)
    assert_unbroken(printed(width, print_preference, preference, analysis), width, ["0.81"])


def sweep_result():
    def measure(value):
        return Estimate(value, (value - 12.3456, value + 123.456), 0.1, (-1.0, 2.0))

    variants = [
        VariantResult(
            "none", "learning_rate: 0.0002", measure(71.4), measure(0.02), measure(-3), None, 3725.0, 4_200_000_000
        ),
        VariantResult(
            "replay+distill+interpolate",
            "interpolate.max_loss_increase: 0.005",
            measure(69.1),
            measure(-0.001),
            None,
            measure(0.1),
            95.0,
            10**11,
            True,
        ),
    ]
    return Sweep("job.yaml", 3, 4, variants, "none")


@pytest.mark.parametrize("width", [*WIDTHS, 160])
def test_a_sweep(width):
    sweep = sweep_result()
    text = printed(width, print_sweep, sweep)
    lines = [line for line in text.splitlines() if line != sweep.yaml_line]
    assert_unbroken("\n".join(lines), width, [content for row in sweep_rows(sweep) for content in row])
    assert sweep.yaml_line in text.splitlines()  # on one line, to be copied


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", NAMES)
def test_lengths_of_rows(width, kind):
    prepared = [
        SimpleNamespace(
            example=SimpleNamespace(task=task, split=split, rank=None),
            input_ids=range(1_234_567),
            supervised_spans=[(9, 1_234_567)],
        )
        for task in NAMES[kind]
        for split in ("train", "validation", "test")
    ]
    text = printed(width, print_lengths, PreviewRows.read(prepared, 1), HeldOutRows())
    assert_unbroken(text, width, ["1,234,567", "1,234,558", "validation", *words_of(NAMES[kind])])


def test_a_wide_table_becomes_a_block_per_row():
    columns = [Column("task", words=True), Column("note", words=True), Column("change"), Column("p", optional=True)]
    table = [["tea", "two words", "+1.0", "0.001"]]
    assert printed(40, print_table, columns, table).splitlines() == [
        "task  note       change      p",
        "tea   two words    +1.0  0.001",
    ]
    assert printed(28, print_table, columns, table).splitlines()[0].split() == [
        "task",
        "note",
        "change",
    ]  # p is left out
    assert printed(22, print_table, columns, table).splitlines()[1:] == [
        "tea   two         +1.0",
        "      words           ",
    ]
    assert printed(16, print_table, columns, table).splitlines() == [
        "tea",
        "  note    ",
        "    two words",
        "  change  +1.0",
        "  p       0.001",
    ]
