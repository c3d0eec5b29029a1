"""Negative log-likelihood of texts."""

import pytest
import torch.nn.functional as F

from pipelines.evaluation.retention import score_retention_eval
from pipelines.modeling.packing import supervised_logits
from tests.evaluation.retention_evals.files import load, prepare


def test_score_is_the_mean_loss_of_all_tokens_but_the_first(files):
    loaded = load(files / "m")
    prepared = prepare(loaded)["text_nll"]
    logits, targets = supervised_logits(loaded.model, prepared.items)
    losses = F.cross_entropy(logits, targets, reduction="none").split(prepared.items.supervised_lengths)
    scores = score_retention_eval(loaded, prepared, None)
    assert scores == pytest.approx([float(loss.detach().mean()) for loss in losses], rel=1e-4)
    assert prepared.items.prompt_lengths == [1] * 4
