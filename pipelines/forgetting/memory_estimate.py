"""The memory that strategies with an importance of their own need, compared with what is free before they start.

An importance is as large as the trained weights, Kronecker factors are larger than the whole model: without the
comparison a run would end after hours, at its first step, or with the machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipelines.errors import MachineError
from pipelines.forgetting.penalty import LoraPair
from pipelines.modeling.memory import free_memory, gigabytes

FP32_BYTES = 4
STEP_COPIES = 2
"""Tensors as large as the trained weights that a step with strategies allocates: the gradients, and a copy of those of
the tasks' rows."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes beyond those that are allocated already. Activations and the optimizer's state are not included."""

    measurement: int = 0
    """On the device, until the importance is measured."""
    training: int = 0
    """On the device, for the length of the training."""
    files: int = 0
    """In main memory, while an importance is written or read."""

    def check(self, subject: str, advice: str, device: torch.device) -> None:
        """Raises MachineError, `SUBJECT needs …; ADVICE`, if one of the three is more than what is free now."""
        device_bytes = max(self.measurement, self.training)
        if device.type == "cpu":
            needs = [("memory", device_bytes + self.files, device)]
        else:
            needs = [("GPU memory", device_bytes, device), ("main memory", self.files, torch.device("cpu"))]
        for place, needed, where in needs:
            free = free_memory(where)
            if needed > free:
                raise MachineError(
                    f"{subject} needs {gigabytes(needed)} of {place}, {gigabytes(free)} are free; {advice}"
                )


def kronecker_factors(pairs: Iterable[LoraPair], num_texts: int, *, is_measured: bool) -> MemoryNeed:
    """The need of EWC with Kronecker factors [out, out] and [in, in] of every adapted matrix, for `num_texts` texts.

    `is_measured`: whether the files of all texts exist already.
    """
    factors = FP32_BYTES * sum(pair.lora_B.shape[0] ** 2 + pair.lora_A.shape[1] ** 2 for pair in pairs)
    return MemoryNeed(0 if is_measured else factors, factors * num_texts, factors)


def diagonal_fisher(weights: Iterable[torch.Tensor], num_texts: int, *, is_measured: bool) -> MemoryNeed:
    """The need of EWC without an adapter.

    Measured with sums and the gradients of one sequence; each text's penalty keeps the starting weights and F.
    """
    fp32 = _fp32_bytes(weights)
    return MemoryNeed(0 if is_measured else 2 * fp32, (2 * num_texts + STEP_COPIES) * fp32, fp32)


def path_integral(
    trained: Iterable[torch.Tensor],
    anchored: Iterable[torch.Tensor],
    num_penalties: int,
    *,
    has_lora: bool,
    is_measured: bool,
) -> MemoryNeed:
    """The need of SI, which trains the `anchored` weights temporarily: without an adapter they are `trained`.

    Measured with fp32 copies of the anchored weights, their gradients, the two moments of AdamW, and start, previous
    value and ω of the path integral. Start, previous value and ω of the trained weights stay; without an adapter each
    penalty keeps the starting weights and Ω as well.
    """
    fp32_trained, fp32_anchored = _fp32_bytes(trained), _fp32_bytes(anchored)
    penalties = 0 if has_lora else 2 * num_penalties * fp32_trained
    training = (3 + STEP_COPIES) * fp32_trained + penalties
    return MemoryNeed(0 if is_measured else 7 * fp32_anchored, training, 0 if has_lora else fp32_trained)


def _fp32_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return FP32_BYTES * sum(tensor.numel() for tensor in tensors)
