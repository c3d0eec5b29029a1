"""A kind that one file adds: config, check, preparation, scores and report know it without another change."""

import importlib
import json

import pytest
import yaml

from pipelines.checks.files import check_data_files, referenced_files
from pipelines.config.job import load_job
from pipelines.config.retention_registry import RETENTION_EVAL_KINDS
from pipelines.errors import ConfigError, DataError
from pipelines.evaluation.retention import (
    check_retention_evals,
    mean_scores,
    retention_records,
    score_retention_eval,
)
from pipelines.report.retention import compare_retention
from tests.evaluation.retention_evals.files import load, prepare

SETTINGS = {"kind": "word_count", "data": "text_nll.jsonl", "limit": 3, "max_new_tokens": 2}
TASK = {"data": "task.jsonl", "prompt": "{q}?", "completion": "{a}", "metric": "exact_match"}


@pytest.fixture
def job(files):
    """job(**settings) → a job with an eval of the added kind."""
    list(RETENTION_EVAL_KINDS)  # the kinds of the package first
    module = importlib.import_module("tests.evaluation.retention_evals.word_count")
    if "word_count" not in RETENTION_EVAL_KINDS:
        RETENTION_EVAL_KINDS.register("word_count", module.WordCount)

    def load_config(**settings):
        forgetting = {"evals": {"words": {**SETTINGS, **settings}}, "eval_steps": 5, "max_regression": {"words": 1}}
        config = {"base_model": "x/y", "pipeline": {"tasks": {"odd": TASK}, "forgetting": forgetting}}
        (files / "job.yaml").write_text(yaml.safe_dump(config))
        return load_job(files / "job.yaml")

    yield load_config
    del RETENTION_EVAL_KINDS._entries["word_count"]


def test_config_and_check_know_the_kind(job, files):
    loaded = job()
    assert type(loaded.pipeline.forgetting.evals["words"]).__name__ == "WordCount"
    assert load_job_again(files, loaded).pipeline.forgetting == loaded.pipeline.forgetting
    assert ("pipeline", "forgetting", "evals", "words", "data") in dict(referenced_files(loaded))
    check_data_files(loaded)
    check_retention_evals(loaded.pipeline.forgetting)
    (files / "text_nll.jsonl").write_text('{"txt": "a"}\n')
    with pytest.raises(DataError, match="text_nll.jsonl:1"):
        check_retention_evals(loaded.pipeline.forgetting)


def load_job_again(files, job):
    (files / "resolved.yaml").write_text(yaml.safe_dump(job.resolved()))
    return load_job(files / "resolved.yaml")


def test_mistakes_in_its_settings_are_named(job):
    with pytest.raises(ConfigError, match="evals.words.max_new_tokens must be at least 1, found 0"):
        job(max_new_tokens=0)
    with pytest.raises(ConfigError, match="max_new_token: unknown key; did you mean max_new_tokens"):
        job(max_new_token=3)
    with pytest.raises(ConfigError, match="text_nll, kl, task or word_count"):
        job(kind="words_count")


def test_scores_reach_the_report(job, files):
    forgetting = job().pipeline.forgetting
    loaded = load(files / "m")
    prepared = prepare(loaded, forgetting)
    scores = score_retention_eval(loaded, prepared["words"], None)
    assert len(scores) == 3 and mean_scores(loaded, list(prepared.values()), None) == {"words": sum(scores) / 3}
    base = retention_records(prepared["words"], scores)
    tuned = retention_records(prepared["words"], [score + item for item, score in enumerate(scores)])
    assert json.loads(base[0].model_dump_json())["kind"] == "word_count"
    result = compare_retention(base, tuned)["words"]
    assert (result.title, result.num_better, result.num_worse) == ("words generated", 2, 0)
