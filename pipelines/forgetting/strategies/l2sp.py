"""L2-SP: an L2 penalty towards the starting weights, weight/2 · ‖θ − θ₀‖², or weight/2 · ‖ΔW‖² under LoRA.

Li et al. 2018, arXiv:1802.01483.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pipelines.config.base import NotNegative
from pipelines.config.strategy_registry import STRATEGIES, SearchSpace, StrategySettings, StrategySpec
from pipelines.forgetting.requirements import penalty_conflict
from pipelines.forgetting.strategy import PenaltyStrategy
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import torch

    from pipelines.forgetting import penalty
    from pipelines.forgetting.context import ForgettingContext
else:
    penalty = lazy_import("pipelines.forgetting.penalty")  # torch


class L2spSettings(StrategySettings):
    """L2 penalty towards the starting weights, with the same weight for every parameter.

    Li et al. 2018, arXiv:1802.01483.
    """

    weight: NotNegative = Field(default=0.01, description="The loss per unit of squared distance, halved.")


class L2sp(PenaltyStrategy):
    """weight/2 · ‖θ − θ₀‖² on every trained weight; under LoRA weight/2 · ‖ΔW‖²."""

    name = "l2sp"

    def __init__(self, settings: L2spSettings) -> None:
        self.settings = settings

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.penalties = penalty.PenaltySet(self.name, model, optimizer)
        self.penalties.add(self.settings.weight, importance=None)


def build(context: ForgettingContext, settings: L2spSettings) -> list[L2sp]:
    return [L2sp(settings)]


STRATEGIES.register(
    "l2sp",
    StrategySpec(
        title="L2 penalty towards the starting weights",
        settings=L2spSettings,
        search_space=SearchSpace("weight", (0.01, 0.1, 1.0, 0.001)),
        build=build,
        conflict=lambda job: penalty_conflict("l2sp", job),
        order=50,
    ),
)
