"""The analysis: counts, verdicts and caveats on rows with a known result."""

import json

import pytest
import yaml

from pipelines.errors import DataError
from pipelines.report import write_report
from pipelines.report.analysis import analyse
from pipelines.report.summaries import headline, task_caveats, task_summary
from tests.report.run_folder import line, write_run


def labels(base, tuned, reference="yes", task="mood", **values):
    """A run of one label task with these answers."""
    completions = [
        [line(task, n, f"p{n}", reference, answer, **values) for n, answer in enumerate(answers)]
        for answers in (base, tuned)
    ]
    return {task: "exact_match"}, *completions


def task_of(folder, run):
    analysis = analyse(write_run(folder, *run))
    return analysis, next(iter(analysis.tasks.values()))


def test_wrong_to_right_is_better(tmp_path):
    analysis, task = task_of(tmp_path / "r", labels(["no"] * 38 + ["yes"] * 2, ["yes"] * 39 + ["no"]))
    assert (task.num_better, task.num_worse, task.num_same, task.verdict) == (38, 1, 1, "better")
    assert [example.change for example in analysis.examples_by_regression[:2]] == ["worse", "same"]
    assert headline(analysis) == "Better on mood."
    assert task_summary(task).startswith("better: exact match 5.0 → 97.5 on 40 rows, +92.5 points (95 % CI +")


def test_right_to_wrong_is_worse(tmp_path):
    analysis, task = task_of(tmp_path / "r", labels(["yes"] * 40, ["no"] * 40))
    assert task.verdict == "worse" and headline(analysis) == "Worse on mood."


def test_an_inconclusive_result_states_the_required_sample_size(tmp_path):
    analysis, task = task_of(tmp_path / "r", labels(["no"] * 20 + ["yes"] * 20, ["yes"] + ["no"] * 19 + ["yes"] * 20))
    assert task.verdict == "inconclusive" and headline(analysis) == "Inconclusive on mood."
    assert task.comparison.required_sample_size > 40
    assert (
        f"≈{task.comparison.required_sample_size:,} test rows needed for 80 % power" in task_summary(task)
        and f"≈{task.comparison.required_sample_size:,}" in task_caveats(task)[0]
    )


def test_equal_completions_need_no_larger_sample(tmp_path):
    _, task = task_of(tmp_path / "r", labels(["yes"] * 40, ["yes"] * 40))
    assert (
        task_summary(task)
        == "inconclusive: exact match 100.0 → 100.0 on 40 rows; both models score the same on every row."
    )


def test_a_lower_loss_is_better(tmp_path):
    completions = [
        [line("text", n, "p", "r", "", reference_nll=loss + n / 100) for n in range(40)] for loss in (2.0, 1.0)
    ]
    analysis, task = task_of(tmp_path / "r", ({"text": "nll"}, *completions))
    assert (task.verdict, task.num_better, task.num_worse) == ("better", 40, 0)
    assert task.comparison.delta == pytest.approx(-1) and analysis.examples[0].gain == pytest.approx(1)
    assert not task.percent_scale and task.reference_nll.delta == pytest.approx(-1)


@pytest.mark.usefixtures("compiled_sandbox")
def test_rows_that_the_sandbox_cannot_run_are_left_out(tmp_path):
    fields = {"tests": ["assert one() == 1"]}
    right, wrong, beyond = (
        "def one():\n    return 1",
        "def one():\n    return 2",
        "import threading\nthreading.Thread(target=print).start()",
    )
    completions = [
        [line("code", n, "p", right, answer, fields=fields) for n, answer in enumerate(answers)]
        for answers in ([wrong] * 30 + [beyond], [right] * 29 + [beyond, right])
    ]
    analysis, task = task_of(tmp_path / "r", ({"code": "unit_tests"}, *completions))
    assert (task.comparison.n, task.unscored.base, task.unscored.tuned) == (29, 1, 1)
    assert (task.comparison.base, task.comparison.tuned) == (0, 100)
    assert [example.change for example in analysis.examples_by_regression[-2:]] == ["unscored", "unscored"]
    assert any(
        caveat.startswith("Left out of the comparison: 1 base completion and 1 tuned completion")
        for caveat in task.caveats
    )


def test_holm_corrects_over_the_tasks(tmp_path):
    runs = [labels(["no"] * 30, ["yes"] * 7 + ["no"] * 23, task=f"t{n}") for n in range(4)]
    metrics, base, tuned = (
        {name: metric for run in runs for name, metric in run[0].items()},
        [record for run in runs for record in run[1]],
        [record for run in runs for record in run[2]],
    )
    analysis = analyse(write_run(tmp_path / "r", metrics, base, tuned))
    for task in analysis.tasks.values():
        assert task.comparison.p_value == pytest.approx(2 * 0.5**7)
        assert task.p_holm == pytest.approx(4 * task.comparison.p_value) and task.verdict == "inconclusive"


def test_a_custom_metric_that_returns_nan(tmp_path, monkeypatch):
    (tmp_path / "mine_nan.py").write_text("def score(completion, reference, row):\n    return float('nan')\n")
    monkeypatch.chdir(tmp_path)
    completions = [[line("a", 0, "p", "r", "c")]] * 2
    with pytest.raises(DataError, match="task 'a', row 0.*nan, not a finite number"):
        analyse(write_run(tmp_path / "r", {"a": "mine_nan:score"}, *completions))


@pytest.mark.parametrize(
    "base, tuned, values, expected",
    [
        (["no"] * 12, ["yes"] * 12, {}, "Small sample (12 test rows, fewer than 30)"),
        (["no"] * 40, ["yes"] * 40, {}, "Every reference is “yes”"),
        (["no"] * 40, ["yes"] * 40, {}, "Base is at the floor (0.0)"),
        (["no"] * 40, ["yes"] * 40, {}, "Tuned is at the ceiling (100.0)"),
        ([""] * 30 + ["no"] * 10, ["yes"] * 40, {}, "30 of 40 base completions are empty."),
    ],
)
def test_caveats(tmp_path, base, tuned, values, expected):
    _, task = task_of(tmp_path / "r", labels(base, tuned, **values))
    assert any(caveat.startswith(expected) for caveat in task.caveats)


def test_a_constant_label_is_a_caveat(tmp_path):
    completions = [
        [line("mood", n, "p", ["yes", "no"][n % 2], answer) for n in range(40)] for answer in ("who knows", "Yes.")
    ]
    _, task = task_of(tmp_path / "r", ({"mood": "exact_match"}, *completions))
    assert "Tuned always answers “Yes.”, whatever the prompt is." in task.caveats


def test_rows_without_defects_have_only_the_majority_caveat(tmp_path):
    completions = [
        [line("mood", n, "p", ["yes", "no"][n % 2], ["yes", "no"][(n + (n % every == 0)) % 2]) for n in range(60)]
        for every in (3, 7)
    ]
    _, task = task_of(tmp_path / "r", ({"mood": "exact_match"}, *completions))
    assert task.caveats == ["Always answering “yes” would score 50.0 %."]


def test_truncated_completions_are_a_caveat_unless_they_are_labels(tmp_path):
    for metric, expected in (("rouge", True), ("exact_match", False)):
        completions = [
            [
                line("t", n, "p", f"yes {n % 3}", answer, finish_reason="length", num_generated_tokens=128)
                for n in range(40)
            ]
            for answer in ("no", "yes")
        ]
        _, task = task_of(tmp_path / metric, ({"t": metric}, *completions))
        assert (
            any("40 of 40 tuned completions were truncated at 128 tokens" in caveat for caveat in task.caveats)
            == expected
        )


def test_a_right_label_in_a_chinese_sentence_is_learning_the_format(tmp_path):
    completions = [
        [line("mood", n, "p", ["正面", "负面"][n % 2], form.format(["正面", "负面"][n % 2])) for n in range(40)]
        for form in ("这条评论是{}的。", "{}")
    ]
    _, task = task_of(tmp_path / "r", ({"mood": "exact_match"}, *completions))
    assert (
        task.comparison.base,
        task.comparison.tuned,
        task.label_anywhere_accuracy.base,
        task.label_anywhere_accuracy.tuned,
    ) == (
        0,
        100,
        100,
        100,
    )
    assert any(
        "Base gives the right label and no other in 100.0 % of its completions" in caveat for caveat in task.caveats
    )


def test_the_most_common_label_is_counted_in_its_compared_form(tmp_path):
    references = ["Polish", "polish", "other", "other", "Polish"] * 8
    completions = [[line("mood", n, "p", reference, "x") for n, reference in enumerate(references)]] * 2
    _, task = task_of(tmp_path / "r", ({"mood": "exact_match"}, *completions))
    assert "Always answering “Polish” would score 60.0 %." in task.caveats


def test_labels_as_written_where_the_config_says_so(tmp_path):
    completions = [
        [line("mood", n, "p", ["Polish", "polish"][n % 2], answer) for n in range(40)]
        for answer in ("polish", "I say Polish.")
    ]
    folder = write_run(tmp_path / "r", {"mood": "exact_match"}, *completions)
    for normalize, scores, anywhere in ((None, (100, 0), (100, 100)), (False, (50, 0), (50, 50))):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["pipeline"]["tasks"]["mood"]["normalize"] = normalize
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        task = analyse(folder).tasks["mood"]
        assert (task.comparison.base, task.comparison.tuned) == scores and (
            task.label_anywhere_accuracy.base,
            task.label_anywhere_accuracy.tuned,
        ) == anywhere
        assert (
            task.title == ("exact match" if normalize is None else "exact match, as written")
            and task.metric.name == "exact_match"
        )


def test_notes_of_the_data_checks_are_caveats(tmp_path):
    folder = write_run(tmp_path / "r", *labels(["no"] * 40, ["yes"] * 40))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["data"]["mood"]["notes"] = ["A label of the test rows has no training row: 'yes' (40 rows)."]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert analyse(folder).tasks["mood"].caveats[-1] == "A label of the test rows has no training row: 'yes' (40 rows)."


def test_sets_of_labels(tmp_path):
    completions = [[line("topics", n, "p", "a, b", answer) for n in range(40)] for answer in ("b", "b, a")]
    analysis, task = task_of(tmp_path / "r", ({"topics": "multilabel_f1"}, *completions))
    assert (task.comparison.base, task.comparison.tuned, task.verdict, task.label_anywhere_accuracy) == (
        pytest.approx(200 / 3),
        100,
        "better",
        None,
    )


def test_a_sample_of_the_test_rows_is_stated_with_its_precision(tmp_path):
    folder = write_run(tmp_path / "r", *labels(["no"] * 60 + ["yes"] * 40, ["yes"] * 80 + ["no"] * 20))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["data"]["mood"]["drawn"] = {"test": {"rows": 100, "of": 10_000}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    task = analyse(folder).tasks["mood"]
    low, high = task.comparison.ci95
    half = (high - low) / 2
    assert (
        f"100 of 10,000 test rows were evaluated, drawn at random: the 95 % CI of the change is ±{half:.1f} points wide; "
        f"with all rows it would be about ±{half / 10:.1f} (report.test_rows)." in task.caveats
    )
    write_report(folder)
    for name in ("report.html", "report.md", "report.json"):
        assert "100 of 10,000" in (folder / name).read_text()
