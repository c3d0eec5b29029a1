"""4-bit and 8-bit base weights with bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import BitsAndBytesConfig

HALF_PRECISION = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def bitsandbytes_config(settings: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> BitsAndBytesConfig:
    """transformers' settings for the section `quantization` of a config, with Ludwig's defaults.

    4-bit weights are multiplied in the half precision `dtype` of the hardware, unless the section has another; where
    the hardware computes fp32, Ludwig's default is fp16.
    """
    bits = settings.get("bits", 4)
    compute_dtype = settings.get("bnb_4bit_compute_dtype") or HALF_PRECISION.get(dtype, "float16")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_threshold=settings.get("llm_int8_threshold", 6.0),
        llm_int8_has_fp16_weight=settings.get("llm_int8_has_fp16_weight", False),
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=settings.get("bnb_4bit_use_double_quant", True),
        bnb_4bit_quant_type=settings.get("bnb_4bit_quant_type", "nf4"),
    )


def num_parameters(parameters: Iterable[torch.nn.Parameter]) -> int:
    """The number of weights. bitsandbytes packs two 4-bit weights into a byte."""
    return sum(_unpacked_shape(parameter).numel() for parameter in parameters)


def _unpacked_shape(parameter: torch.nn.Parameter) -> torch.Size:
    state = getattr(parameter, "quant_state", None)
    return parameter.shape if state is None else torch.Size(state.shape)


def keep_weights_unpacked(model: torch.nn.Module) -> None:
    """Keeps 4-bit weights in the layout that a backward pass reads.

    On a CPU with bf16 instructions, bitsandbytes packs them for inference in the first forward pass of a model in
    evaluation mode, and a later training would read them wrongly.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
