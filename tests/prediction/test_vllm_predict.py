"""`predict` with vLLM, for which a stand-in runs: the same predictions, and an error at the line of the config."""

import json

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.modeling import hardware
from tests.evaluation.test_vllm_decoding import STAND_IN
from tests.inference.tiny_run import make_run


@pytest.fixture
def predict(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    monkeypatch.setattr(hardware, "_current", hardware._current)  # which the commands choose for the process
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"this {word}"}) + "\n" for word in "abcdef"))

    def predict(engine, *options):
        folder = tmp_path / engine
        if not folder.exists():
            folder.mkdir()
            make_run(folder, pipeline={"hardware": {"inference_engine": engine}})
        words = ["predict", str(folder / "run"), str(tmp_path / "rows.jsonl"), "--task", "say", *options]
        return CliRunner().invoke(main, words)

    return predict


def test_predictions_by_vllm_are_those_of_alfine(predict):
    results = [predict(engine, "--base") for engine in ("torch", "vllm")]
    assert results[0].exit_code == results[1].exit_code == 0, results[1].output
    assert results[0].stdout == results[1].stdout
    rows = [json.loads(line) for line in results[1].stdout.splitlines()]
    assert len(rows) == 6 and any(row["prediction"] != row["base_prediction"] for row in rows)


def test_a_required_vllm_that_fails_is_an_error_at_its_line(predict, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "load")
    result = predict("vllm")
    assert result.exit_code == 1
    assert "config.yaml:1: pipeline.hardware.inference_engine: vllm: vLLM failed (ValueError: Model" in result.stderr
