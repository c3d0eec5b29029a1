"""Whether two models, or two ways to compute one, give the same numbers: compared on a small probe batch."""

from __future__ import annotations

import numpy as np
import torch

from pipelines.modeling.packing import supervised_logits, token_losses
from pipelines.modeling.token_sequences import TokenSequences

MAX_RELATIVE_ERROR_FP32 = 1e-4
MEAN_RELATIVE_ERROR = 0.1


def probe_batch(model: torch.nn.Module) -> TokenSequences:
    """Three sequences, two with a shared prefix, of tokens from the middle of the vocabulary, where none is special."""
    vocabulary_size = model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    rng = np.random.default_rng(0)
    prefix, first, second, unrelated = (
        rng.integers(vocabulary_size // 8, vocabulary_size // 2, length).astype(np.int32) for length in (8, 9, 5, 13)
    )
    return TokenSequences.supervised_from(
        [np.concatenate([prefix, first]), np.concatenate([prefix, second]), unrelated], [2, 9, 1]
    )


@torch.no_grad()
def probe_logits(model: torch.nn.Module) -> torch.Tensor:
    """The logits of the probe batch without dropout: fp32 [supervised tokens, vocabulary] on the CPU."""
    was_training = model.training
    model.eval()
    logits, _ = supervised_logits(model, probe_batch(model))
    model.train(was_training)
    return logits.float().cpu()


@torch.no_grad()
def probe_losses(model: torch.nn.Module) -> torch.Tensor:
    """The loss of each supervised token of the probe batch without dropout, in nats: fp32 on the CPU."""
    was_training = model.training
    model.eval()
    losses = token_losses(model, probe_batch(model))
    model.train(was_training)
    return losses.float().cpu()


def is_fp32(model: torch.nn.Module) -> bool:
    """Whether all computations are in fp32: on the CPU, not quantized."""
    weight = next(model.parameters())
    dtype = getattr(model, "dtype", weight.dtype)
    return dtype == torch.float32 and weight.device.type == "cpu" and not getattr(model, "is_quantized", False)


def outputs_match(actual: torch.Tensor, expected: torch.Tensor, fp32: bool) -> bool:
    """Whether two outputs are equal up to rounding errors, relative to the standard deviation of `expected`.

    In fp32 every element must be within 1e-4. In lower precision the mean error must be below 0.1.
    """
    relative_error = (actual - expected).abs() / expected.std()
    return bool(relative_error.max() < MAX_RELATIVE_ERROR_FP32 if fp32 else relative_error.mean() < MEAN_RELATIVE_ERROR)
