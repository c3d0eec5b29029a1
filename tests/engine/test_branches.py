"""Continuations scored together are those scored one by one."""

import numpy as np
import pytest

from pipelines.engine.branches import Branches, _one_by_one, continuation_losses
from tests.forgetting.tiny_lora import base, lora


@pytest.mark.parametrize("build", [base, lora])
def test_they_do_not_see_each_other(tmp_path, build):
    model = build(tmp_path / "m").eval()
    chance = np.random.default_rng(0)
    items = [
        Branches(chance.integers(5, 200, 3 + n).tolist(), [chance.integers(5, 200, 1 + k).tolist() for k in range(4)])
        for n in range(5)
    ]
    found = list(continuation_losses(model, items, batch_tokens=40))
    for item, losses in zip(items, found, strict=True):
        alone = [float(_one_by_one(model, [Branches(item.prefix, [one])]).sum()) for one in item.continuations]
        assert losses == pytest.approx(alone, rel=1e-4)
