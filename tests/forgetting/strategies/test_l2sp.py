"""L2-SP: the squared distance from the starting weights."""

import pytest
import torch

from pipelines.forgetting.strategies.l2sp import L2sp, L2spSettings
from tests.forgetting.tiny_lora import base, sgd


def test_the_penalty_is_half_the_weighted_squared_distance(tmp_path):
    model = base(tmp_path / "m")
    l2sp = L2sp(L2spSettings(weight=1e-6))
    l2sp.setup(model, sgd(model))
    moved = 0
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1
            moved += weight.numel()
    l2sp.after_step([])
    assert l2sp.metrics()["l2sp"] == pytest.approx(0.5e-6 * 0.01 * moved, rel=1e-3)
    assert l2sp.proximal_grad_norm == pytest.approx(1e-6 * 0.1 * moved**0.5, rel=1e-3)
