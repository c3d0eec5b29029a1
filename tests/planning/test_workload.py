"""The workload of a job against the rows, splits and tokens that a run prepares."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import yaml

from pipelines.config.job import load_job
from pipelines.config.lr_schedules import StepCounts
from pipelines.data.examples import load_examples
from pipelines.planning.token_lengths import TokenCounter
from pipelines.planning.workload import measure_workload, sample_tasks

TASK = {"prompt": "Is it? {text}", "completion": "{label}", "metric": "exact_match", "max_new_tokens": 7}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from tests.tiny import make_model

    return make_model(tmp_path_factory.mktemp("base"))


def write_job(tmp_path, base, rows, data="rows.jsonl", **trainer):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "pipeline": {
            "tasks": {"t": {**TASK, "data": str(path) if data == "rows.jsonl" else data}},
            "forgetting": "none",
        },
        "base_model": str(base),
        "trainer": {"type": "finetune", "epochs": 2, "batch_size": 4, **trainer},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    return load_job(tmp_path / "job.yaml")


def make_rows(count, **columns):
    return [
        {"text": f"the inn {'tea ' * (index % 9)}{index}", "label": ["yes", "no"][index % 2], **columns}
        for index in range(count)
    ]


def measure(job, base, size=1500):
    counter = TokenCounter(job, base)
    return measure_workload(job, sample_tasks(job, counter, size), counter.is_exact)


@pytest.mark.parametrize("has_column", [False, True])
def test_rows_tokens_and_steps_are_those_of_the_run(tmp_path, base, has_column):
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.data.tokenize_rows import tokenize_examples
    from pipelines.modeling.token_sequences import num_supervised_tokens

    rows = make_rows(60)
    if has_column:
        rows = [{**row, "split": ["train", "train", "test", "validation"][index % 4]} for index, row in enumerate(rows)]
    job = write_job(tmp_path, base, rows)
    work = measure(job, base)
    examples = list(load_examples(job.pipeline))
    counts = Counter(example.split for example in examples)
    (task,) = work.tasks
    assert all(abs(task.rows[split] - counts[split]) <= (0 if has_column else 1) for split in counts)
    tokenized = list(tokenize_examples(examples, PromptFormat.from_folder(base, job.chat_template_settings())))
    assert task.tokens == pytest.approx(sum(len(row.input_ids) for row in tokenized) / 60, abs=1)
    assert task.longest == pytest.approx(max(len(row.input_ids) for row in tokenized), abs=1)
    supervised = sum(num_supervised_tokens(row.supervised_spans) for row in tokenized) / 60
    assert task.supervised == pytest.approx(supervised, abs=1)
    assert work.steps == StepCounts.from_trainer(job.trainer, task.rows["train"])


def test_files_by_split_keep_their_rows_and_missing_splits_are_drawn(tmp_path, base):
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in make_rows(10)))
    data = {"train": str(tmp_path / "rows.jsonl"), "test": str(test)}
    work = measure(write_job(tmp_path, base, make_rows(50), data=data), base)
    assert work.tasks[0].rows == {"train": 45, "validation": 5, "test": 10}


def test_a_large_file_is_sampled_and_says_so(tmp_path, base):
    work = measure(write_job(tmp_path, base, make_rows(600)), base, size=60)
    assert work.tasks[0].is_sampled
    assert work.total("train") == 480
    exact = measure(write_job(tmp_path, base, make_rows(600)), base)
    assert not exact.tasks[0].is_sampled
    assert work.tasks[0].tokens == pytest.approx(exact.tasks[0].tokens, rel=0.1)


@pytest.mark.parametrize("too_long", ["drop", "truncate_prompt"])
@pytest.mark.parametrize("size", [1500, 60])
def test_a_lower_limit_shortens_the_longest_row(tmp_path, base, too_long, size):
    rows = [*make_rows(580), *({"text": f"{'tea ' * 100}{index}", "label": "yes"} for index in range(20))]
    whole = measure(write_job(tmp_path, base, rows, batch_size=1), base, size)
    job = write_job(tmp_path, base, rows, batch_size=1)
    limited = replace(
        job,
        pipeline=job.pipeline.model_copy(update={"too_long": too_long}),
        ludwig={**job.ludwig, "preprocessing": {"global_max_sequence_length": 60}},
    )
    work = measure(limited, base, size)
    assert whole.longest > 100 and work.longest <= 60
    if too_long == "truncate_prompt" or size == 60:
        assert work.longest == work.tasks[0].longest == 60
    assert work.micro_batch_tokens == work.longest


def test_shared_prefixes_are_counted_once(tmp_path, base):
    rows = [{"text": f"{'tea ' * 40}{index}", "label": "yes"} for index in range(40)]
    work = measure(write_job(tmp_path, base, rows), base)
    assert work.step_tokens < 0.6 * 4 * work.mean_length
    assert work.sharing < 0.3


def test_the_micro_batch_is_at_least_the_longest_row(tmp_path, base):
    rows = [*make_rows(80), {"text": "tea " * 200, "label": "no"}]
    work = measure(write_job(tmp_path, base, rows, batch_size=1), base)
    assert work.micro_batch_tokens >= work.longest > 200
    auto = measure(write_job(tmp_path, base, rows, batch_size="auto", effective_batch_size=8), base)
    assert auto.micro_batch_tokens is None
