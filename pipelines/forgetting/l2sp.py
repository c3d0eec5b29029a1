"""L2-SP: distance from the start costs the same in every direction."""

from __future__ import annotations

from pipelines.config.forgetting import L2sp as Settings
from pipelines.forgetting.penalty import quadratic_penalty
from pipelines.forgetting.strategy import Strategy


def l2sp(settings: Settings, adapter: bool) -> Strategy:
    """½·strength·‖θ − θ₀‖², under LoRA ½·strength·‖ΔW‖²."""
    return quadratic_penalty("l2sp", settings.weight, adapter, None)
