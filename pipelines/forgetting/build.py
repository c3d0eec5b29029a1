"""Builds the strategies of a job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.config.strategy_registry import STRATEGIES
from pipelines.forgetting.strategy import Strategy

if TYPE_CHECKING:
    from pipelines.forgetting.context import ForgettingContext


def build_strategies(context: ForgettingContext) -> list[Strategy]:
    """Returns the strategies of the job in the order in which they act. Labels such as `peft` are no strategies."""
    names = [name for name in context.strategies if name in STRATEGIES]
    strategies: list[Strategy] = []
    for name in sorted(names, key=lambda name: (STRATEGIES[name].order, name)):
        new_strategies = STRATEGIES[name].build(context, context.job.pipeline.forgetting.settings(name))
        context.strategies_by_name[name] = new_strategies[0]
        strategies += new_strategies
    return strategies
