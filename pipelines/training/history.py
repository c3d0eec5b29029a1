"""What the history of a training says. `pipelines.storage.records.TrainingHistory` defines its keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def loss_since_last_evaluation(history: Mapping[str, Any]) -> float:
    """Returns the mean loss of the steps since the last evaluation, in nats per token; NaN without a step."""
    evaluated = [entry["step"] for entry in history["validation_loss"]]
    last_evaluation = evaluated[-1] if evaluated else 0
    recent = [entry["loss"] for entry in history["train_loss"] if entry["step"] > last_evaluation]
    return sum(recent) / len(recent) if recent else math.nan
