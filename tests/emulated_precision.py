"""Half precision on the CPU, as on a GPU: frozen weights in bf16 or fp16, and autocast in the same dtype.

The CPU computes both formats, so that a dtype error or a loss of precision shows without a GPU. It rounds like a GPU,
but it sums in another order.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipelines.modeling import loading, mixed_precision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def emulated_precision(dtype: torch.dtype) -> Iterator[None]:
    """Trains and infers on the CPU with the dtypes of a GPU whose half precision is `dtype`."""
    from_pretrained, load = AutoModelForCausalLM.from_pretrained, loading.load_causal_lm

    def load_causal_lm(folder: Any, *, allow_bf16: bool, quantization: Any = None) -> Any:
        def with_dtype(*args: Any, **kwargs: Any) -> Any:
            return from_pretrained(*args, **{**kwargs, "dtype": dtype if allow_bf16 else torch.float32})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AutoModelForCausalLM, "from_pretrained", with_dtype)
            return load(folder, allow_bf16=allow_bf16, quantization=quantization)

    def autocast_dtype(device: torch.device) -> torch.dtype:
        return dtype

    with pytest.MonkeyPatch.context() as patch:
        for function, replacement in ((load, load_causal_lm), (mixed_precision.autocast_dtype, autocast_dtype)):
            for module in list(sys.modules.values()):
                if getattr(module, "__dict__", {}).get(function.__name__) is function:
                    patch.setattr(module, function.__name__, replacement)
        yield
