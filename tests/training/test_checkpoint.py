"""A checkpoint is restored completely or not at all."""

from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from pipelines.training.checkpoint import (
    CorruptCheckpointError,
    SafetensorsCheckpoint,
    _insert_tensors,
    _on_cpu,
    _separate_tensors,
)


def make_checkpoint(*frozen):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    for name in frozen:
        model[name].requires_grad_(False)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    scheduler = SimpleNamespace(state_dict=dict)
    coordinator = SimpleNamespace(is_coordinator=lambda: True)
    return SafetensorsCheckpoint(coordinator, model, optimizer, scheduler, history={})


def test_trained_weights_are_restored(tmp_path):
    saved, restored = make_checkpoint("b"), make_checkpoint("b")
    with torch.no_grad():
        saved.model["a"].weight.fill_(7)
    saved.save(str(tmp_path / "latest.ckpt"), 3)
    restored.load(str(tmp_path / "latest.ckpt"))
    assert restored.global_step == 3 and restored.model["a"].weight.eq(7).all()


@pytest.mark.parametrize(
    ("frozen_when_saved", "frozen_now", "mismatched"), [(("b",), (), "b.bias"), ((), ("a",), "a.bias")]
)
def test_a_checkpoint_of_other_weights_is_rejected_before_anything_is_restored(
    tmp_path, frozen_when_saved, frozen_now, mismatched
):
    saved, restored = make_checkpoint(*frozen_when_saved), make_checkpoint(*frozen_now)
    with torch.no_grad():
        for weight in saved.model.parameters():
            weight.fill_(7)
    saved.save(str(tmp_path / "latest.ckpt"), 3)
    with pytest.raises(CorruptCheckpointError, match=f"not the trained weights of this job, such as {mismatched}"):
        restored.load(str(tmp_path / "latest.ckpt"))
    assert restored.global_step == 0 and not any(weight.eq(7).any() for weight in restored.model.parameters())


def test_nested_states_keep_their_structure():
    first, second = torch.ones(2), torch.zeros(3)
    state = {0: {"step": 3, "a": first, "quantized": {"b": second, "bits": 8}, "empty": {}}, 1: {"c": second}}
    tensors = {}
    rest = _separate_tensors(state, "optimizer/", tensors)
    assert rest == {"0": {"step": 3, "quantized": {"bits": 8}, "empty": {}}, "1": {}}
    assert sorted(tensors) == ["optimizer/0/a", "optimizer/0/quantized/b", "optimizer/1/c"]
    inserted = _insert_tensors(rest, {name.removeprefix("optimizer/"): tensor for name, tensor in tensors.items()})
    assert inserted == {str(index): values for index, values in state.items()}


@pytest.mark.parametrize("values", [{"a/b": 1}, {"a": [torch.ones(1)]}])
def test_a_state_that_cannot_be_restored_is_not_saved(values):
    with pytest.raises(TypeError):
        _separate_tensors({0: values}, "optimizer/", {})


def test_weights_for_inference_are_restored_in_place_without_the_optimizer(tmp_path, monkeypatch):
    checkpoint = make_checkpoint("b")
    weights = dict(checkpoint.model.named_parameters())
    optimizer = checkpoint.optimizer = torch.optim.AdamW([weights["a.weight"], weights["a.bias"]])
    for name in ("a.weight", "a.bias"):
        weights[name].grad = torch.ones_like(weights[name])
    optimizer.step()
    expected = {name: weight.detach().clone() for name, weight in weights.items()}
    checkpoint.save(str(tmp_path / "best.ckpt"), 3)
    optimizer.step()
    addresses = {name: weight.data_ptr() for name, weight in weights.items()}
    read = []

    class Reader:
        """Records the names of the tensors that are read."""

        def __init__(self, path, **arguments):
            self.file = safe_open(path, **arguments)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            assert not optimizer.state  # its memory is free before anything is read
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr("pipelines.training.checkpoint.safe_open", Reader)
    restored = checkpoint.get_state_for_inference(str(tmp_path / "best.ckpt"), torch.device("cpu"))
    assert read == ["weights/a.weight", "weights/a.bias"] and list(restored) == ["a.weight", "a.bias"]
    for name, weight in checkpoint.model.named_parameters():
        assert torch.equal(weight, expected[name]) and weight.data_ptr() == addresses[name] and weight.grad is None
        assert name not in restored or restored[name] is weight


def test_tensors_of_a_checkpoint_share_no_memory_and_are_copied_only_if_needed():
    tensor, part = torch.arange(6.0).reshape(2, 3), torch.arange(8.0)[2:4]
    tensors = {"a": tensor, "tied": tensor, "transposed": tensor.T, "part": part}
    written = _on_cpu(tensors)
    assert written["a"].data_ptr() == tensor.data_ptr()
    assert len({value.untyped_storage().data_ptr() for value in written.values()}) == 4
    for name, value in written.items():
        assert value.is_contiguous() and torch.equal(value, tensors[name])
        assert value.untyped_storage().nbytes() == value.nbytes
