"""Retention evals of kind task: templates, metrics, scores."""

import pytest

from pipelines.config.forgetting import Forgetting
from pipelines.errors import DataError
from pipelines.evaluation.retention import check_retention_evals, configured_retention_evals, score_retention_eval
from tests.evaluation.retention_evals.files import TASK, load, prepare, settings


def test_missing_column_is_named(files):
    task = {"kind": "task", "data": "task.jsonl", "prompt": "{nope}", "completion": "{a}"}
    with pytest.raises(DataError, match="task.jsonl:1.*nope"):
        check_retention_evals(Forgetting.model_validate({"evals": {"mine": task}}))


def test_limit_applies_to_the_examples(files):
    evals = configured_retention_evals(settings(task={**TASK, "limit": 1}))
    assert [(example.prompt, example.completion) for example in evals["task"].examples("task")] == [("tea?", "yes")]


def test_custom_metric_that_fails_on_a_completion_names_eval_and_row(files):
    (files / "only_yes.py").write_text("def f(completion, reference, row): return {'yes': 1, '': 0}[completion]\n")
    forgetting = settings(task={**TASK, "metric": "only_yes:f"})
    check_retention_evals(forgetting)
    loaded = load(files / "m")
    with pytest.raises(DataError, match="task 'task', row 1: metric only_yes:f raised KeyError"):
        score_retention_eval(loaded, prepare(loaded, forgetting)["task"], None)
