"""Files and templates of a config."""

import pytest

from pipelines.checks.files import check_data_files
from pipelines.errors import DataError
from tests.data.task_jobs import make_job, task_job


@pytest.mark.parametrize(
    ("prompt", "completion", "wrong"),
    [
        (
            "{q}\n{a}",
            "{a}",
            "prompt: it contains the answer: {a}, of which the completion is made; remove {a} from the prompt",
        ),
        ("{q} {a}", "{a} since {q}", "it contains the answer: {a} and {q}"),
        ("{a}", "<b>{a}</b>", "it contains the answer: {a}"),
        ("{q}", "{a} since {q}", None),
        ("{{a}} {q}", "{a}", None),
    ],
)
def test_a_prompt_with_the_completion(tmp_path, prompt, completion, wrong):
    job = task_job(tmp_path, [{"q": "the a is in the text", "a": "a"}], prompt=prompt, completion=completion)
    if wrong is None:
        return check_data_files(job)
    with pytest.raises(DataError) as caught:
        check_data_files(job)
    assert wrong in str(caught.value) and "job.yaml:1" in str(caught.value)


def test_a_prompt_with_the_completion_in_a_retention_eval(tmp_path):
    (tmp_path / "g.jsonl").write_text('{"q": "x", "a": "y"}\n')
    settings = {"kind": "task", "data": str(tmp_path / "g.jsonl"), "prompt": "{q} {a}", "completion": "{a}"}
    job = make_job(tmp_path, [{"q": "x", "a": "y"}], forgetting={"strategy": "none", "evals": {"g": settings}})
    with pytest.raises(DataError, match="evals.g.prompt: it contains the answer"):
        check_data_files(job)


def test_one_file_for_two_splits(tmp_path):
    train = str(tmp_path / "rows.jsonl")
    job = task_job(tmp_path, [{"q": "1", "a": "2"}], data={"train": train, "test": f"{tmp_path}/./rows.jsonl"})
    with pytest.raises(DataError, match="train and test are the same file"):
        check_data_files(job)
