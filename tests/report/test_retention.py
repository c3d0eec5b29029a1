"""Retention: verdicts, caveats, backward transfer, gates, and every form of the report."""

import json
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from pipelines.errors import RunError
from pipelines.report import html, json_report, markdown
from pipelines.report.analysis import analyse
from pipelines.report.retention import backward_transfer, compare_retention
from pipelines.report.summaries import headline, retention_summary
from pipelines.report.terminal import print_summary
from pipelines.storage.records import RetentionRecord
from tests.report.run_folder import make_run, write_lines


def lines(name, kind, scores, **more):
    return [
        {"eval": name, "kind": kind, "metric": "", "item": n, "score": score, **more}
        for n, score in enumerate(scores, start=1)
    ]


def records(dicts):
    return [RetentionRecord.model_validate(line) for line in dicts]


def results(base, tuned):
    return compare_retention(records(base), records(tuned))


def test_a_regression_is_significant_and_counts_worse_and_better_items():
    base = lines("knowledge", "multiple_choice", [100] * 60 + [0] * 40, chance_accuracy=25)
    tuned = lines("knowledge", "multiple_choice", [0] * 25 + [100] * 38 + [0] * 37, chance_accuracy=25)
    result = results(base, tuned)["knowledge"]
    assert (result.num_worse, result.num_better, result.verdict) == (25, 3, "regressed")
    assert result.regression == pytest.approx(22) and result.regression_bound > 22
    assert result.summary.startswith("regressed: multiple choice 60.0 → 38.0 on 100 items, −22.0 points")


def test_no_significant_regression_states_the_bound_of_the_interval():
    base = lines("text", "text_nll", [3.0 + n / 50 for n in range(40)])
    tuned = lines("text", "text_nll", [3.0 + n / 50 + 0.02 * (-1) ** n for n in range(40)])
    result = results(base, tuned)["text"]
    assert (
        result.verdict == "no significant regression"
        and "95 % CI includes a regression of" in result.summary
        and result.unit == "nats/token"
    )
    worse = results(base, lines("text", "text_nll", [3.1 + n / 50 + 0.02 * (-1) ** n for n in range(40)]))["text"]
    assert worse.verdict == "regressed" and worse.num_worse == 40 and worse.num_better == 0


def test_a_divergence_has_no_test_and_no_verdict():
    result = results(lines("answers", "kl", [0.0] * 9), lines("answers", "kl", [0.3, 0.1, 0.2] * 3))["answers"]
    assert result.verdict is None and result.p_holm is None and "general answers: 0.200" in result.summary


def test_a_base_at_chance_is_a_caveat():
    base = lines("k", "multiple_choice", ([100] + [0] * 3) * 10, chance_accuracy=25)
    assert "at chance (25.0 %, chance is 25.0 %)" in results(base, base)["k"].caveats[0]
    assert not results(lines("k", "multiple_choice", [100] * 30 + [0] * 10, chance_accuracy=25), base)["k"].caveats


def test_items_without_a_score_are_left_out():
    base, tuned = lines("t", "task", [100, None, 0]), lines("t", "task", [100, 0, 100])
    for line in (*base, *tuned):
        line["metric"] = "exact_match"
    assert results(base, tuned)["t"].comparison.n == 2


def test_the_summary_names_improved_tasks_regressed_evals_and_the_divergence(tmp_path):
    analysis = analyse(with_retention(tmp_path / "r"))
    divergence = "KL(base ‖ tuned) on general answers: 0.300 nats/token (5 items)."
    assert retention_summary(analysis) == (
        f"Improved: mood (+100.0 points). Regressed: text (+0.495 nats/token). {divergence}"
    )
    nothing_significant = replace(analysis, tasks={}, retention={"answers": analysis.retention["answers"]})
    assert retention_summary(nothing_significant) == (
        f"No task improved significantly. No retention eval regressed significantly. {divergence}"
    )
    assert retention_summary(replace(analysis, retention={})) == ""


def test_backward_transfer_is_the_mean_over_the_earlier_tasks():
    tuned = lines("one/a", "task", [100] * 10 + [0] * 10, score_after_own_task=100) + lines(
        "two/b", "task", [100] * 40, score_after_own_task=100
    )
    for line in tuned:
        line["metric"] = "exact_match"
    result = backward_transfer(records(tuned))
    assert result.value == pytest.approx(-25) and result.tasks == 2 and result.ci95[0] < -25 < result.ci95[1]
    assert backward_transfer(records(lines("text", "text_nll", [1.0]))) is None


def with_retention(folder, gates=None):
    make_run(folder)
    base = lines("text", "text_nll", [3.0] * 20) + lines("answers", "kl", [0.0] * 5)
    tuned = lines("text", "text_nll", [3.4 + n / 100 for n in range(20)]) + lines("answers", "kl", [0.3] * 5)
    write_lines(folder / "retention" / "base.jsonl", base)
    write_lines(folder / "retention" / "tuned.jsonl", tuned)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["pipeline"]["report"] = {"gates": gates or {}}
    config["pipeline"]["forgetting"] = {"strategy": "ewc"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    training = json.loads((folder / "model" / "training.json").read_text())
    training["retention"] = [{"step": n, "scores": {"text": 3.0 + n / 400, "answers": n / 600}} for n in (60, 120, 180)]
    (folder / "model" / "training.json").write_text(json.dumps(training))
    return folder


@pytest.mark.parametrize(
    ("gate", "passed"),
    [
        ({"max_drop": 0.5, "by": "point_estimate"}, True),
        ({"max_drop": 0.4, "by": "point_estimate"}, False),
        ({"max_drop": 0.5}, False),
    ],
)
def test_a_gate_on_a_retention_eval(tmp_path, gate, passed):
    analysis = analyse(with_retention(tmp_path / "r", {"text": gate}))
    assert [(gate_result.name, gate_result.passed) for gate_result in analysis.gates] == [("text", passed)]
    assert "Retention regressed on text." in headline(analysis)


def test_a_gate_on_an_eval_that_was_not_measured_fails(tmp_path):
    assert not analyse(with_retention(tmp_path / "r", {"other": {"max_drop": 1.0}})).gates[0].passed


def test_every_form_shows_the_retention(tmp_path):
    analysis = analyse(with_retention(tmp_path / "r"))
    console = Console(record=True, width=140)
    print_summary(analysis, console)
    for form in (html.render(analysis), markdown.render(analysis), console.export_text()):
        assert "NLL of text" in form and "KL divergence from base" in form and "Improved: mood" in form
    assert 'aria-label="Change of the retention evals over the steps of training"' in html.render(analysis)
    report = json.loads(json_report.render(analysis))
    assert report["retention"]["text"]["verdict"] == "regressed" and report["retention"]["answers"]["verdict"] is None
    assert report["training_method"] == "peft" and report["strategies"] == ["ewc"]


def test_a_truncated_retention_file_is_named(tmp_path):
    folder = with_retention(tmp_path / "r")
    text = (folder / "retention" / "tuned.jsonl").read_text().splitlines(keepends=True)
    (folder / "retention" / "tuned.jsonl").write_text("".join(text[:-1]))
    with pytest.raises(RunError, match="24 rows, but base has 25"):
        analyse(folder)
