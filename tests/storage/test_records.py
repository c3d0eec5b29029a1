"""Records: what is written is read again; measurements may be NaN when written, not when read for a report."""

import json
import math

import pytest
from pydantic import ValidationError

from pipelines.storage.records import (
    REJECT_NONFINITE,
    CompletionRecord,
    RetentionRecord,
    read_records,
    write_records,
)
from pipelines.storage.strict_json import NonTextValue


def completion(**values):
    keys = {"task": "t", "row": 1, "prompt": "p", "reference": "r", "completion": "c", "reference_nll": 1.5}
    return CompletionRecord(**{**keys, "num_generated_tokens": 2, "finish_reason": "stop", **values})


def test_records_are_read_as_they_were_written(tmp_path):
    records = [completion(fields={"a": [1, None]}), completion(row=2, reference_nll=None, finish_reason="length")]
    write_records(tmp_path / "c.jsonl", records)
    assert read_records(tmp_path / "c.jsonl", CompletionRecord) == records


def test_a_line_has_every_key(tmp_path):
    write_records(tmp_path / "r.jsonl", [RetentionRecord(eval="e", kind="text_nll", item=1, score=None)])
    assert json.loads((tmp_path / "r.jsonl").read_text()) == {
        "eval": "e",
        "kind": "text_nll",
        "metric": "",
        "item": 1,
        "score": None,
        "chance_accuracy": None,
        "score_after_own_task": None,
    }


def test_a_diverged_measurement_is_written_and_rejected_by_the_report(tmp_path):
    write_records(tmp_path / "c.jsonl", [completion(reference_nll=math.nan)])
    assert math.isnan(read_records(tmp_path / "c.jsonl", CompletionRecord)[0].reference_nll)
    line = json.loads((tmp_path / "c.jsonl").read_text())
    with pytest.raises(ValidationError, match="finite number"):
        CompletionRecord.model_validate(line, context=REJECT_NONFINITE)


def test_text_that_utf8_cannot_encode_is_replaced_and_columns_are_kept(tmp_path):
    record = completion(completion="half \ud83d", fields={"x": NonTextValue("Infinity", "why")})
    assert record.completion == "half \ufffd"
    write_records(tmp_path / "c.jsonl", [record])
    assert json.loads((tmp_path / "c.jsonl").read_text())["fields"] == {"x": "Infinity"}


def test_unknown_keys_are_kept():
    assert completion(more=1).model_dump()["more"] == 1
