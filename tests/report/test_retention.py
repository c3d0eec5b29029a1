"""What the report says of the guards."""

import json

import pytest
import yaml

from pipelines.report.analysis import analyse
from pipelines.report.retention import backward_transfer, guard_results, learned_and_lost
from pipelines.report.run_files import GuardScore
from pipelines.report.summaries import headline
from tests.report.run_folder import make_run, write_lines


def lines(name, kind, scores, **more):
    return [
        {"guard": name, "kind": kind, "metric": "", "item": n, "score": score, **more}
        for n, score in enumerate(scores, start=1)
    ]


def records(found):
    return [GuardScore.model_validate(line) for line in found]


def results(base, tuned):
    return guard_results(records(base), records(tuned))


def test_a_loss_of_knowledge_is_told_with_both_kinds_of_flips():
    base = lines("knowledge", "multiple_choice", [100] * 60 + [0] * 40, chance=25)
    tuned = lines("knowledge", "multiple_choice", [0] * 25 + [100] * 38 + [0] * 37, chance=25)
    found = results(base, tuned)["knowledge"]
    assert (found.lost, found.gained, found.verdict) == (25, 3, "lost")
    assert found.loss == pytest.approx(22) and found.greatest_loss > 22
    assert found.sentence.startswith("lost: multiple choice 60.0 → 38.0 on 100 items, −22.0 points")


def test_text_that_is_as_likely_as_before_is_no_loss_and_says_what_cannot_be_ruled_out():
    base = lines("text", "text_nll", [3.0 + n / 50 for n in range(40)])
    tuned = lines("text", "text_nll", [3.0 + n / 50 + 0.02 * (-1) ** n for n in range(40)])
    found = results(base, tuned)["text"]
    assert found.verdict == "no loss seen" and "cannot be ruled out" in found.sentence and found.unit == "nats/token"
    worse = results(base, lines("text", "text_nll", [3.1 + n / 50 + 0.02 * (-1) ** n for n in range(40)]))["text"]
    assert worse.verdict == "lost" and worse.lost == 40 and worse.gained == 0


def test_a_divergence_is_a_drift_and_is_not_tested():
    found = results(lines("answers", "kl", [0.0] * 9), lines("answers", "kl", [0.3, 0.1, 0.2] * 3))["answers"]
    assert found.verdict == "drift" and found.p_holm is None and "drifted by 0.200" in found.sentence


def test_a_guard_at_chance_can_show_nothing():
    base = lines("k", "multiple_choice", ([100] + [0] * 3) * 10, chance=25)
    assert "at chance (25.0 %, guessing gives 25.0 %)" in results(base, base)["k"].flags[0]
    assert not results(lines("k", "multiple_choice", [100] * 30 + [0] * 10, chance=25), base)["k"].flags


def test_items_without_a_score_leave_the_pairs():
    base, tuned = lines("t", "task", [100, None, 0]), lines("t", "task", [100, 0, 100])
    for line in (*base, *tuned):
        line["metric"] = "exact_match"
    assert results(base, tuned)["t"].n == 2


def test_what_was_learned_and_lost_stands_in_one_line():
    base = lines("text", "text_nll", [3.0] * 20) + lines("answers", "kl", [0.0] * 5)
    tuned = lines("text", "text_nll", [3.4 + n / 100 for n in range(20)]) + lines("answers", "kl", [0.3] * 5)
    text = learned_and_lost(["mood (+9.0 points)"], list(results(base, tuned).values()))
    assert (
        text
        == "Learned: mood (+9.0 points). Lost: text (+0.495 nats/token); its general answers drifted by 0.300 nats/token."
    )


def test_backward_transfer_is_the_mean_over_the_earlier_tasks():
    tuned = lines("one/a", "task", [100] * 10 + [0] * 10, own=100) + lines("two/b", "task", [100] * 40, own=100)
    for line in tuned:
        line["metric"] = "exact_match"
    found = backward_transfer(records(tuned))
    assert found.value == pytest.approx(-25) and found.tasks == 2 and found.ci95[0] < -25 < found.ci95[1]
    assert backward_transfer(records(lines("text", "text_nll", [1.0]))) is None


def with_guards(folder, gates=None):
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
def test_a_gate_on_a_guard(tmp_path, gate, passed):
    analysis = analyse(with_guards(tmp_path / "r", {"text": gate}))
    assert [(one.name, one.passed) for one in analysis.gates] == [("text", passed)]
    assert "Lost on text." in headline(analysis)


def test_a_gate_on_a_guard_that_was_not_measured_fails(tmp_path):
    assert not analyse(with_guards(tmp_path / "r", {"other": {"max_drop": 1.0}})).gates[0].passed


def test_every_form_shows_them(tmp_path):
    from rich.console import Console

    from pipelines.report import html, markdown
    from pipelines.report import json_report as as_json
    from pipelines.report.terminal import print_summary

    analysis = analyse(with_guards(tmp_path / "r"))
    console = Console(record=True, width=140)
    print_summary(analysis, console)
    for form in (html.render(analysis), markdown.render(analysis), console.export_text()):
        assert "loss on text" in form and "divergence from base" in form and "Learned: mood" in form
    assert 'aria-label="What the guards lost over the steps of training"' in html.render(analysis)
    found = json.loads(as_json.render(analysis))
    assert found["guards"]["text"]["verdict"] == "lost" and found["strategies"] == "peft; against forgetting: ewc"


def test_half_a_guard_file_is_named(tmp_path):
    from pipelines.errors import RunError

    folder = with_guards(tmp_path / "r")
    text = (folder / "retention" / "tuned.jsonl").read_text().splitlines(keepends=True)
    (folder / "retention" / "tuned.jsonl").write_text("".join(text[:-1]))
    with pytest.raises(RunError, match="24 rows, but base has 25"):
        analyse(folder)
