"""4-bit and 8-bit base weights with bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import BitsAndBytesConfig


def bitsandbytes_config(settings: Mapping[str, Any]) -> BitsAndBytesConfig:
    """transformers' settings for the section `quantization` of a config, with Ludwig's defaults."""
    bits = settings.get("bits", 4)
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_threshold=settings.get("llm_int8_threshold", 6.0),
        llm_int8_has_fp16_weight=settings.get("llm_int8_has_fp16_weight", False),
        bnb_4bit_compute_dtype=settings.get("bnb_4bit_compute_dtype", "float16"),
        bnb_4bit_use_double_quant=settings.get("bnb_4bit_use_double_quant", True),
        bnb_4bit_quant_type=settings.get("bnb_4bit_quant_type", "nf4"),
    )
