"""L2-SP: distance from the start costs the same in every direction."""

from __future__ import annotations

from pipelines.config.forgetting import L2sp as Settings
from pipelines.forgetting.penalty import spring
from pipelines.forgetting.strategy import Strategy


def l2sp(settings: Settings, adapter: bool) -> Strategy:
    """½·strength·‖θ − θ₀‖², under LoRA ½·strength·‖ΔW‖²."""
    return spring("l2sp", settings.strength, adapter, None)
