"""Replay draws what it promises, and goes on where it was cut off."""

import pytest
import torch
import torch.nn.functional as F

from pipelines.config.forgetting import Distill as DistillSettings
from pipelines.forgetting.distill import Distill
from pipelines.forgetting.replay import Replay
from pipelines.modeling.kl_divergence import kl_divergence
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.reference_model import ReferenceModel
from tests.forgetting.tiny_lora import lora, rows, sgd


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_the_share_of_supervised_tokens_is_the_one_asked_for(share):
    general, replay = rows(30, seed=3), Replay(rows(30, seed=3), share, 0, train_on_rows=True, distill=None)
    tasks = added = 0
    for step in range(600):
        batch = rows(8, seed=step)
        tasks += batch.supervised_tokens
        added += replay.sample_rows(batch)
    assert added / (tasks + added) == pytest.approx(share, abs=0.003)
    # Every row comes once before any comes twice.
    assert replay.num_drawn == pytest.approx(added / general.supervised_tokens * 30, abs=30)


def test_without_a_share_nothing_is_drawn():
    replay = Replay(rows(5), 0.0, 0, train_on_rows=True, distill=None)
    replay.setup(torch.nn.Module(), None)
    assert replay.sample_rows(rows(8)) == 0 and list(replay.extra_losses(10)) == []


def test_it_goes_on_where_it_was():
    drawn = []
    for restart in (False, True):
        replay = Replay(rows(9, seed=3), 0.2, 7, train_on_rows=True, distill=None)
        for step in range(40):
            if restart and step == 17:
                state = replay.state_dict()
                replay = Replay(rows(9, seed=3), 0.2, 7, train_on_rows=True, distill=None)
                replay.load_state_dict(state)
            replay.sample_rows(rows(8, seed=step))
            drawn.append([ids.tolist() for ids in replay.current_rows.input_ids])
    assert drawn[:40] == drawn[40:] and any(drawn)


def test_its_terms_are_cross_entropy_and_divergence(tmp_path):
    model, general = lora(tmp_path / "m", moved=True), rows(12, seed=3)
    distill = Distill(DistillSettings(weight=0.5))
    replay = Replay(general, 0.4, 0, train_on_rows=True, distill=distill)
    for strategy in (distill, replay):
        strategy.setup(model, sgd(model))
    batch = rows(8)
    supervised = batch.supervised_tokens + replay.sample_rows(batch)
    found, targets = supervised_logits(model, replay.current_rows)
    each = kl_divergence(ReferenceModel(model).logits(replay.current_rows), found)
    expected = F.cross_entropy(found, targets, reduction="sum") / supervised
    expected = expected + 0.5 * each.sum() / (0.4 / 0.6 * batch.supervised_tokens)
    torch.testing.assert_close(sum(replay.extra_losses(supervised)), expected)
    assert replay.metrics()["distill"] == pytest.approx(float(each.mean()), rel=1e-4)


def test_distillation_alone_adds_no_token_to_the_mean():
    replay = Replay(rows(5), 0.4, 0, train_on_rows=False, distill=None)
    assert replay.sample_rows(rows(8)) == 0 and len(replay.current_rows)
