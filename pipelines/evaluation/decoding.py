"""Which way tokens are generated in: the fastest for the device and the settings that passes its trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipelines.config.generation import is_greedy
from pipelines.evaluation.generation import supports_packed_prefill
from pipelines.evaluation.slot_decoding import decoding_matches
from pipelines.evaluation.slot_pool import supports_slots


def select_decoding(model: torch.nn.Module, settings: Mapping[str, Any], requested: str | None) -> str:
    """How to generate: "graph" or "slots" (`slot_decoding`), "pool" (`pool_decoding`), or "generate" (transformers).

    `settings` are those of `transformers.GenerationConfig`; `requested` excludes the other ways. `generate` serves
    sampling, beams and penalties, models that fail the trial, and sharded models.
    """
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if requested == "generate" or not is_greedy(settings) or is_distributed or not supports_packed_prefill(model):
        return "generate"
    is_cuda = next(model.parameters()).device.type == "cuda"
    candidates = [requested] if requested else ["graph", "slots"] if is_cuda else ["pool"]
    # The record is the model's own: a PEFT model would look up that of the model inside.
    passed: dict[str, bool] = vars(model).setdefault("decoding_trials", {})
    for candidate in candidates:
        if candidate not in passed:
            if candidate == "pool":
                passed[candidate] = supports_slots(model)
            else:
                passed[candidate] = decoding_matches(model, use_graph=candidate == "graph")
        if passed[candidate]:
            return candidate
    return "generate"
