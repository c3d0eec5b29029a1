"""Token ids in `generation:` are checked against the model's vocabulary."""

import json

import pytest

from pipelines.checks.token_ids import check_token_ids
from pipelines.config.job import load_job
from pipelines.errors import ConfigError
from tests.bad_configs import GOOD

IDS = {
    "suppress_tokens": [3, 267],
    "begin_suppress_tokens": [267],
    "bad_words_ids": [[1], [2, 300]],
    "forced_eos_token_id": 267,
}


@pytest.mark.parametrize("key", IDS)
def test_tokens_beyond_the_vocabulary(tmp_path, key):
    (tmp_path / "job.yaml").write_text(GOOD + f"  {key}: {json.dumps(IDS[key])}\n", encoding="utf-8")
    job = load_job(tmp_path / "job.yaml")
    with pytest.raises(ConfigError) as caught:
        check_token_ids(job, 267)
    (problem,) = caught.value.problems
    assert problem.line == 15 and "but this model's tokens are 0 to 266" in problem.message
    check_token_ids(job, 301)


def test_token_counts_are_not_token_ids(tmp_path):
    (tmp_path / "job.yaml").write_text(
        GOOD.replace("max_new_tokens: 8", "max_new_tokens: 900\n  min_new_tokens: 300"), encoding="utf-8"
    )
    check_token_ids(load_job(tmp_path / "job.yaml"), 267)
