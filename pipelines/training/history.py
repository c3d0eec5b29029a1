"""What a training records in its history. `pipelines.storage.records.TrainingHistory` defines the keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.token_sequences import TokenSequences


def current_step(history: Mapping[str, Any]) -> int:
    """Returns the number of the current step, counted from 1. Skipped steps count."""
    return 1 + sum(len(history.get(key, [])) for key in ("train_loss", "skipped_steps", "overflowed_steps"))


def record_step(history: dict[str, Any], inputs: TokenSequences, loss: float) -> None:
    """Adds a step on the rows `inputs` with their mean loss in nats per supervised token."""
    history["train_loss"].append({"step": current_step(history), "loss": loss})
    history["rows"] += len(inputs)
    history["tokens"] += inputs.num_tokens
    history["supervised_tokens"] += inputs.num_supervised_tokens


def record_strategies(
    history: dict[str, Any], strategies: Sequence[Strategy], strategy_grad_norm: float, task_row_grad_norm: float
) -> None:
    """Adds the losses of the strategies in the last recorded step, and the ratio of the norms of their gradients.

    `strategy_grad_norm` is the norm of the gradients that the strategies add, `task_row_grad_norm` that of the losses
    on the tasks' rows, which include losses of strategies on these rows, see `Strategy.after_step`.
    """
    metrics = {name: value for strategy in strategies for name, value in strategy.metrics().items()}
    norm = math.hypot(strategy_grad_norm, *(strategy.proximal_grad_norm for strategy in strategies))
    ratio = norm / task_row_grad_norm if task_row_grad_norm else None
    record = {"step": history["train_loss"][-1]["step"], **metrics, "penalty_to_task_grad_norm_ratio": ratio}
    history.setdefault("forgetting", []).append(record)


def loss_since_last_evaluation(history: Mapping[str, Any]) -> float:
    """Returns the mean loss of the steps since the last evaluation, in nats per token; NaN without a step."""
    evaluated = [entry["step"] for entry in history["validation_loss"]]
    last_evaluation = evaluated[-1] if evaluated else 0
    recent = [entry["loss"] for entry in history["train_loss"] if entry["step"] > last_evaluation]
    return sum(recent) / len(recent) if recent else math.nan
