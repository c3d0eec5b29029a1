"""A checkpoint is put back whole or not at all."""

from types import SimpleNamespace

import pytest
import torch

from pipelines.training.checkpoint import CorruptCheckpointError, SafetensorsCheckpoint


def checkpoint(*frozen):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    for name in frozen:
        model[name].requires_grad_(False)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    scheduler = SimpleNamespace(state_dict=dict)
    coordinator = SimpleNamespace(is_coordinator=lambda: True)
    return SafetensorsCheckpoint(coordinator, model, optimizer, scheduler, history={})


def test_the_trained_weights_come_back(tmp_path):
    saved, fresh = checkpoint("b"), checkpoint("b")
    with torch.no_grad():
        saved.model["a"].weight.fill_(7)
    saved.save(str(tmp_path / "latest.ckpt"), 3)
    fresh.load(str(tmp_path / "latest.ckpt"))
    assert fresh.global_step == 3 and fresh.model["a"].weight.eq(7).all()


@pytest.mark.parametrize(("before", "now", "named"), [(("b",), (), "b.bias"), ((), ("a",), "a.bias")])
def test_one_of_other_weights_is_refused_before_anything_is_put_back(tmp_path, before, now, named):
    saved, other = checkpoint(*before), checkpoint(*now)
    with torch.no_grad():
        for weight in saved.model.parameters():
            weight.fill_(7)
    saved.save(str(tmp_path / "latest.ckpt"), 3)
    with pytest.raises(CorruptCheckpointError, match=f"not the trained weights of this job, such as {named}"):
        other.load(str(tmp_path / "latest.ckpt"))
    assert other.global_step == 0 and not any(weight.eq(7).any() for weight in other.model.parameters())
