"""Importance files: written once, read back bitwise, refused for another model or a damaged file."""

import pytest
import torch

from pipelines.errors import RunError
from pipelines.forgetting.importance import load_importance, load_or_compute, save_importance
from pipelines.forgetting.penalty import FactoredImportance


def test_an_importance_file_is_read_back(tmp_path):
    factors = FactoredImportance(torch.rand(3), torch.rand(2))
    save_importance(tmp_path / "weights", {"a": torch.ones(2)}, "a model")
    save_importance(tmp_path / "factors", {"layer": factors}, "a model")
    assert torch.equal(load_importance(tmp_path / "weights", "a model")["a"], torch.ones(2))
    loaded = load_importance(tmp_path / "factors", "a model")["layer"]
    assert torch.equal(loaded.output, factors.output) and torch.equal(loaded.input, factors.input)


def test_importance_is_computed_once(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"a": torch.ones(2)}

    for _ in range(2):
        assert torch.equal(load_or_compute(tmp_path / "file", "a model", measure)["a"], torch.ones(2))
    assert len(calls) == 1


def test_an_importance_file_of_another_model_or_a_damaged_one_is_refused(tmp_path):
    save_importance(tmp_path / "x.safetensors", {"a": torch.ones(2)}, "one model")
    with pytest.raises(RunError, match="x.safetensors was measured on another model"):
        load_importance(tmp_path / "x.safetensors", "another")
    (tmp_path / "y.safetensors").write_bytes(b"half a file")
    with pytest.raises(RunError, match="is not a valid importance file"):
        load_importance(tmp_path / "y.safetensors", "one model")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_importance_that_is_not_finite_is_an_error_and_not_kept(tmp_path, value):
    bad = torch.tensor([1.0, value])
    for layer in (bad, FactoredImportance(torch.ones(3), bad), FactoredImportance(bad, torch.ones(3))):
        with pytest.raises(RunError, match="the importance of layer is not finite"):
            load_or_compute(tmp_path / "file", "a model", lambda layer=layer: {"a": torch.ones(2), "layer": layer})
        assert not (tmp_path / "file").exists()
