"""Retention evals of every kind: settings, checks of their rows, scores; and a kind that is added by one file."""

import subprocess
import sys
from unittest import mock

import pytest
from pydantic import ValidationError

from pipelines.config.forgetting import Forgetting
from pipelines.config.retention_registry import bundled_evals, retention_eval_kinds
from pipelines.errors import DataError
from pipelines.evaluation.retention import (
    PreparedRetentionEval,
    check_retention_evals,
    configured_retention_evals,
    mean_scores,
    score_retention_eval,
)
from pipelines.modeling.reference_model import ReferenceModel
from tests.evaluation.retention_evals.conftest import files  # noqa: F401  (fixture)
from tests.evaluation.retention_evals.files import ROWS, load, prepare, settings


def test_kinds_and_bundled_evals_are_listed_in_a_fixed_order():
    assert list(retention_eval_kinds()) == ["multiple_choice", "text_nll", "kl", "task"]
    assert [(name, kind) for name, (kind, _) in bundled_evals().items()] == [
        ("knowledge", "multiple_choice"),
        ("text", "text_nll"),
        ("answers", "kl"),
    ]
    assert list(configured_retention_evals(Forgetting())) == Forgetting().eval_names == ["knowledge", "text", "answers"]


def test_settings_survive_a_round_trip():
    forgetting = settings()
    dumped = forgetting.model_dump(mode="json")
    assert dumped["evals"]["task"]["prompt"] == "{q}?" and "prompt" not in dumped["evals"]["text_nll"]
    assert Forgetting.model_validate(dumped) == forgetting


@pytest.mark.parametrize(
    ("eval_settings", "key", "message"),
    [
        ({"data": "a"}, "kind", "required"),
        ({"kind": "story", "data": "a"}, "kind", "'multiple_choice', 'text_nll', 'kl' or 'task'"),
        ({"kind": ["kl"], "data": "a"}, "kind", "'multiple_choice'"),
        ({"kind": "kl"}, "data", "required"),
        ({"kind": "task", "data": "a", "prompt": "{q}"}, "completion", "required"),
        ({"kind": "kl", "data": "a", "metric": "rouge"}, "mine", "metric is only valid with kind: task; remove it"),
        ({"kind": "kl", "data": "a", "color": 1}, "color", "not permitted"),
        ("kl", "mine", "dictionary"),
    ],
)
def test_errors_are_located_at_their_key(eval_settings, key, message):
    with pytest.raises(ValidationError) as error:
        Forgetting.model_validate({"evals": {"mine": eval_settings}})
    (details,) = error.value.errors()
    assert details["loc"][-1] == key and message in details["msg"]


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        (
            '{"question": "a", "choices": ["b"], "answer": 0}',
            "multiple_choice",
            "rows.jsonl:1: choices needs two texts or more, found 1",
        ),
        ('{"question": "a", "choices": ["b", "c"], "answer": 2}', "multiple_choice", "rows.jsonl:1"),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": "b"}',
            "multiple_choice",
            "the index of the correct entry of choices, counted from 0",
        ),
        ('{"txt": "a"}', "text_nll", "needs a text in `text`; the row has: txt; if txt is meant, rename it"),
        ('{"text": ""}', "text_nll", "rows.jsonl:1"),
        ("", "text_nll", "has no rows"),
        ("", "multiple_choice", "has no rows"),
        ('{"prompt": "a"}', "kl", "`instruction`"),
    ],
)
def test_bad_rows_are_named(files, rows, kind, message):  # noqa: F811
    (files / "rows.jsonl").write_text(rows + "\n")
    with pytest.raises(DataError) as error:
        check_retention_evals(Forgetting.model_validate({"evals": {"g": {"kind": kind, "data": "rows.jsonl"}}}))
    assert message in str(error.value)


def test_every_kind_scores_every_item_in_one_batch_or_several(files):  # noqa: F811
    loaded = load(files / "m")
    with loaded.model.disable_adapter():
        evals = prepare(loaded)
    reference_logits = ReferenceModel(loaded.model).logits
    scores = {name: score_retention_eval(loaded, prepared, reference_logits) for name, prepared in evals.items()}
    assert {name: len(values) for name, values in scores.items()} == {name: len(rows) for name, rows in ROWS.items()}
    assert set(scores["multiple_choice"]) <= {0.0, 100.0} and set(scores["task"]) <= {0.0, 100.0}
    for name, prepared in evals.items():
        parts = [score_retention_eval(loaded, batch, reference_logits) for batch in prepared.batches(2)]
        assert sum(parts, []) == pytest.approx(scores[name], abs=1e-5)


def test_eval_without_a_score_has_no_mean():
    evals = [PreparedRetentionEval("code", "task", "x"), PreparedRetentionEval("text", "text_nll", "x")]
    scores = {"code": [None, None], "text": [1.0, None, 2.0]}
    with mock.patch(
        "pipelines.evaluation.retention.score_retention_eval", lambda _, prepared, __: scores[prepared.name]
    ):
        assert mean_scores(None, evals, None) == {"text": 1.5}  # a mean of nothing would be NaN


def test_kinds_load_without_torch():
    code = "import sys; from pipelines.config.retention_registry import retention_eval_kinds as kinds; kinds()"
    subprocess.run(
        [sys.executable, "-c", f"{code}; assert not {{'torch', 'transformers', 'ludwig'}} & set(sys.modules)"],
        check=True,
    )
