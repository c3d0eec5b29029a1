"""Replay samples the fraction that it promises, and resumes with the next row."""

import pytest
import torch
import torch.nn.functional as F

from pipelines.forgetting.strategies.distill import Distill, DistillSettings
from pipelines.forgetting.strategies.replay import Replay
from pipelines.modeling.kl_divergence import kl_divergence
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.reference_model import ReferenceModel
from tests.forgetting.tiny_lora import lora, rows, sgd


def make_replay(general, fraction, seed=0, *, train_on_rows=True, distill=None):
    return Replay(general, fraction, seed, train_on_rows=train_on_rows, distill=distill)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3])
def test_the_fraction_of_supervised_tokens_is_realized(fraction):
    general = rows(30, seed=3)
    replay = make_replay(general, fraction)
    task_tokens = replay_tokens = 0
    for step in range(600):
        batch = rows(8, seed=step)
        task_tokens += batch.num_supervised_tokens
        replay_tokens += replay.begin_step(batch)
    assert replay_tokens / (task_tokens + replay_tokens) == pytest.approx(fraction, abs=0.003)
    # Every row is sampled once before any is sampled twice.
    assert replay.num_drawn == pytest.approx(replay_tokens / general.num_supervised_tokens * 30, abs=30)


def test_a_fraction_of_zero_samples_nothing():
    replay = make_replay(rows(5), 0.0)
    replay.setup(torch.nn.Module(), None)
    assert replay.begin_step(rows(8)) == 0 and list(replay.losses_on_own_rows(10)) == []


def test_state_dict_resumes_with_the_next_row():
    sampled = []
    for restart in (False, True):
        replay = make_replay(rows(9, seed=3), 0.2, seed=7)
        for step in range(40):
            if restart and step == 17:
                state = replay.state_dict()
                replay = make_replay(rows(9, seed=3), 0.2, seed=7)
                replay.load_state_dict(state)
            replay.begin_step(rows(8, seed=step))
            sampled.append([ids.tolist() for ids in replay.current_rows.input_ids])
    assert sampled[:40] == sampled[40:] and any(sampled)


def test_losses_are_cross_entropy_and_kl_divergence(tmp_path):
    model, general = lora(tmp_path / "m", moved=True), rows(12, seed=3)
    distill = Distill(DistillSettings(weight=0.5))
    replay = make_replay(general, 0.4, distill=distill)
    for strategy in (distill, replay):
        strategy.setup(model, sgd(model))
    batch = rows(8)
    loss_denominator = batch.num_supervised_tokens + replay.begin_step(batch)
    logits, targets = supervised_logits(model, replay.current_rows)
    kl = kl_divergence(ReferenceModel(model).logits(replay.current_rows), logits)
    expected = F.cross_entropy(logits, targets, reduction="sum") / loss_denominator
    expected = expected + 0.5 * kl.sum() / (0.4 / 0.6 * batch.num_supervised_tokens)
    torch.testing.assert_close(sum(replay.losses_on_own_rows(loss_denominator)), expected)
    assert replay.metrics()["distill"] == pytest.approx(float(kl.detach().mean()), rel=1e-4)


def test_without_training_on_rows_no_token_is_added_to_the_mean():
    replay = make_replay(rows(5), 0.4, train_on_rows=False)
    assert replay.begin_step(rows(8)) == 0 and len(replay.current_rows)
