"""Half precision on the CPU, as on a GPU: frozen weights in bf16 or fp16, and autocast in the same dtype.

The CPU computes both formats, so that a dtype error or a loss of precision shows without a GPU. It rounds like a GPU,
but it sums in another order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from pipelines.config.hardware import HardwareSettings
from pipelines.modeling import hardware

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def emulated_precision(dtype: torch.dtype) -> Iterator[None]:
    """Trains and infers on the CPU with the dtypes of a GPU whose half precision is `dtype`.

    A run configures the hardware from its job; `dtype` stays.
    """
    policy = hardware.Hardware(torch.device("cpu"), dtype, reason="emulated")

    def detect(settings: HardwareSettings) -> hardware.Hardware:
        return policy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "_current", policy)
        patch.setattr(hardware, "detect_hardware", detect)
        yield
