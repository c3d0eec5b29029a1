"""Weight interpolation (WiSE-FT): θ₀ + α(θ₁ − θ₀), with α chosen after training by the loss on general text.

Wortsman et al. 2022, arXiv:2109.01903. No training step is changed; under LoRA α is a factor on the adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from pipelines.config.base import NotNegative
from pipelines.config.strategy_registry import STRATEGIES, SearchSpace, StrategySettings, StrategySpec
from pipelines.forgetting.requirements import adapter_conflict
from pipelines.forgetting.strategy import Strategy
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    from pipelines.forgetting import interpolation
    from pipelines.forgetting.context import ForgettingContext
else:
    interpolation = lazy_import("pipelines.forgetting.interpolation")  # torch

SCALES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


class InterpolateSettings(StrategySettings):
    """Weights between base and tuned, chosen after training. Wortsman et al. 2022, arXiv:2109.01903."""

    max_loss_increase: NotNegative = Field(
        default=0.02,
        description="The allowed increase of the loss on general text, in nats per token; the largest scale within it "
        "is chosen.",
    )
    scale: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="A fixed scale α, whatever the loss on general text."
    )

    @model_validator(mode="after")
    def _scale_or_search(self) -> Self:
        if self.scale is not None and self.max_loss_increase != type(self).model_fields["max_loss_increase"].default:
            raise ValueError("max_loss_increase has no effect beside scale; remove one of them")
        return self


def bisect_scale(
    max_loss_increase: float, loss_at: Callable[[float], float]
) -> tuple[float, list[tuple[float, float]]]:
    """Returns the largest of SCALES at which `loss_at` exceeds its value at 0 by `max_loss_increase` or less.

    Also returns the measurements [(scale, loss in nats per token)]. Bisection: the loss is assumed to increase with
    the scale from where it exceeds the allowed increase.
    """
    base_loss = loss_at(0.0)
    measurements = [(0.0, base_loss)]

    def is_allowed(index: int) -> bool:
        measurements.append((SCALES[index], loss_at(SCALES[index])))
        return measurements[-1][1] - base_loss <= max_loss_increase

    if is_allowed(0):
        return SCALES[0], measurements
    rejected, allowed = 0, len(SCALES) - 1  # indices into SCALES, which decreases
    while allowed - rejected > 1:
        middle = (rejected + allowed) // 2
        if is_allowed(middle):
            allowed = middle
        else:
            rejected = middle
    return SCALES[allowed], measurements


class Interpolate(Strategy):
    """Replaces the tuned weights by base + scale · (tuned − base)."""

    name = "interpolate"
    acts_during_training = False

    def __init__(self, settings: InterpolateSettings, context: ForgettingContext) -> None:
        self.settings, self.context = settings, context

    def transform_weights(self, model_folder: Path) -> dict[str, Any]:
        base = self.context.starting_model_folder
        model = interpolation.InterpolatedModel(base, model_folder, self.context.job.quantization)
        scale, measurements = self._choose_scale(model)
        interpolation.scale_model(base, model_folder, scale)
        losses = [{"scale": measured_scale, "loss": loss} for measured_scale, loss in measurements]
        return {
            "probe_losses": model.probe_losses(scale),
            "interpolate": {"scale": scale, "general_loss": losses},
        }

    def _choose_scale(self, model: interpolation.InterpolatedModel) -> tuple[float, list[tuple[float, float]]]:
        if self.settings.scale is not None:
            return self.settings.scale, []
        text = self.context.general_passages
        return bisect_scale(self.settings.max_loss_increase, lambda scale: model.mean_loss(text, scale))


def build(context: ForgettingContext, settings: InterpolateSettings) -> list[Interpolate]:
    return [Interpolate(settings, context)]


STRATEGIES.register(
    "interpolate",
    StrategySpec(
        title="weight interpolation",
        settings=InterpolateSettings,
        search_space=SearchSpace("max_loss_increase", (0.02, 0.01, 0.005, 0.05)),
        build=build,
        conflict=lambda job: adapter_conflict("interpolate", job),
        order=60,
    ),
)
