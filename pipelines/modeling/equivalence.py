"""A few rows on which two models, or two ways through one, are compared before anything is built on their being the same."""

from __future__ import annotations

import numpy as np
import torch

from pipelines.modeling.packing import supervised_logits, token_losses
from pipelines.modeling.token_sequences import TokenSequences


def probe_batch(model: torch.nn.Module) -> TokenSequences:
    """Rows of which some share a beginning; tokens from the middle of the vocabulary, where none is special."""
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    random = np.random.default_rng(0)
    beginning, *ends = (
        random.integers(vocabulary // 8, vocabulary // 2, length).astype(np.int32) for length in (8, 9, 5, 13)
    )
    return TokenSequences.from_completion_starts(
        [*(np.concatenate([beginning, end]) for end in ends[:2]), ends[2]], [2, 9, 1]
    )


@torch.no_grad()
def probe_logits(model: torch.nn.Module) -> torch.Tensor:
    """What the model predicts on the trial rows, without dropout: fp32 [tokens, vocabulary], on the CPU."""
    training = model.training
    model.eval()
    logits, _ = supervised_logits(model, probe_batch(model))
    model.train(training)
    return logits.float().cpu()


@torch.no_grad()
def probe_losses(model: torch.nn.Module) -> torch.Tensor:
    """The loss of each token of the trial rows, without dropout, in nats: fp32 [tokens], on the CPU."""
    training = model.training
    model.eval()
    losses = token_losses(model, probe_batch(model))
    model.train(training)
    return losses.float().cpu()


def is_fp32(model: torch.nn.Module) -> bool:
    """Whether the model calculates in fp32 throughout."""
    weight = next(model.parameters())
    dtype = getattr(model, "dtype", weight.dtype)
    return dtype == torch.float32 and weight.device.type == "cpu" and not getattr(model, "is_quantized", False)


def allclose(found: torch.Tensor, expected: torch.Tensor, exact: bool) -> bool:
    """Whether both are the same to rounding: a ten-thousandth of their spread in fp32, else a tenth of it on average."""
    apart = (found - expected).abs() / expected.std()
    return bool(apart.max() < 1e-4 if exact else apart.mean() < 0.1)
