"""Gates on the point estimate or the interval, for scores and losses; the exit code."""

import pytest
import yaml
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.report.analysis import analyse
from pipelines.report.summaries import headline
from tests.report.run_folder import line, write_run


def run_with_gates(folder, gates, right=12):
    """40 rows of a label task, of which tuned gets `right` and the base none; a text task whose loss falls by 1."""
    completions = [
        [line("mood", n, f"p{n}", "yes", answers[n]) for n in range(40)]
        for answers in (["no"] * 40, ["yes"] * right + ["no"] * (40 - right))
    ]
    for lines, loss in zip(completions, (2.0, 1.0), strict=True):
        lines += [
            line("text", n, "p", "r", "x", reference_nll=loss + n % 7 / 10 + loss * (n % 3) / 10) for n in range(40)
        ]
    write_run(folder, {"mood": "exact_match", "text": "nll"}, *completions)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["pipeline"]["report"] = {"gates": gates}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ({"min_gain": 29.9, "by": "point_estimate"}, True),
        ({"min_gain": 30.1, "by": "point_estimate"}, False),
        ({"min_gain": 10}, True),
        ({"min_gain": 29.9}, False),  # the interval's lower end is about 14
    ],
)
def test_a_gate_on_a_score(tmp_path, gate, passed):
    analysis = analyse(run_with_gates(tmp_path / "r", {"mood": gate}))
    assert [(result.name, result.passed) for result in analysis.gates] == [("mood", passed)]
    assert ("Gate failed: mood." in headline(analysis)) != passed
    assert "+30.0" in analysis.gates[0].summary


@pytest.mark.parametrize(("min_gain", "passed"), [(0.9, True), (1.2, False), (-0.5, True)])
def test_a_gate_on_a_loss(tmp_path, min_gain, passed):
    analysis = analyse(run_with_gates(tmp_path / "r", {"text": {"min_gain": min_gain}}))
    low, high = analysis.tasks["text"].comparison.ci95
    assert high < 0 and -high >= 0.9
    assert analysis.gates[0].passed == passed


def test_failed_gates_come_first_and_end_with_exit_code_3(tmp_path):
    folder = run_with_gates(tmp_path / "r", {"text": {"min_gain": 0.5}, "mood": {"min_gain": 50}})
    result = CliRunner().invoke(main, ["report", str(folder)])
    assert result.exit_code == 3
    assert result.output.index("FAILED") < result.output.index("passed")
    assert "Gate failed: mood." in result.output
    for form in ("report.html", "report.md", "report.json"):
        assert "Gate failed: mood." in (folder / form).read_text()


def test_all_gates_passed_is_exit_code_0(tmp_path):
    assert (
        CliRunner().invoke(main, ["report", str(run_with_gates(tmp_path / "r", {"mood": {"min_gain": 5}}))]).exit_code
        == 0
    )
