"""What the settings of the section `generation:` mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SAMPLING_SETTINGS = {"do_sample", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p"}
"""Settings without an effect on greedy decoding, and the limit."""


def is_greedy(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of `transformers.GenerationConfig` mean the most likely token at each step."""
    neutral = {"num_beams": 1, "repetition_penalty": 1.0, "use_cache": True}
    return not settings.get("do_sample") and all(
        key in SAMPLING_SETTINGS or value is None or neutral.get(key) == value for key, value in settings.items()
    )
