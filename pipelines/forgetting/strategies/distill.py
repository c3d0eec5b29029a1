"""Distillation: α·T²·KL(reference ‖ tuned) per token, with the starting model or a larger teacher as the reference.

Hinton et al. 2015, arXiv:1503.02531. On general rows the loss preserves the predictions of the starting model; on the
tasks' own rows it works against the tasks, unless the reference is a teacher that is better at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipelines.config.base import Count, Fraction, NotNegative, Positive, Text
from pipelines.config.strategy_registry import STRATEGIES, JobTraits, SearchSpace, StrategySettings, StrategySpec
from pipelines.forgetting.strategies.replay import Replay
from pipelines.forgetting.strategy import Strategy
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import torch

    from pipelines.forgetting import teacher as teachers
    from pipelines.forgetting.context import ForgettingContext
    from pipelines.modeling import base_models, deferred_scalars, kl_divergence, reference_model
    from pipelines.modeling.deferred_scalars import DeferredScalar
    from pipelines.modeling.token_sequences import TokenSequences
else:
    torch = lazy_import("torch")
    teachers = lazy_import("pipelines.forgetting.teacher")  # torch
    base_models = lazy_import("pipelines.modeling.base_models")  # transformers
    deferred_scalars = lazy_import("pipelines.modeling.deferred_scalars")  # torch
    kl_divergence = lazy_import("pipelines.modeling.kl_divergence")  # torch
    reference_model = lazy_import("pipelines.modeling.reference_model")  # torch


class DistillSettings(StrategySettings):
    """KL divergence from the predictions of the starting model, or of a teacher, as a loss.

    Hinton et al. 2015, arXiv:1503.02531.
    """

    model_keys: ClassVar[tuple[str, ...]] = ("teacher",)

    weight: NotNegative = Field(
        default=1.0,
        description="The weight α. At 1, one nat of KL divergence per token counts as one nat of the tasks' loss.",
    )
    temperature: Positive = Field(default=1.0, description="The temperature T of both distributions.")
    apply_to: Literal["general", "task", "both"] = Field(
        default="general",
        description="The rows on which the divergence is a loss: general rows (those of replay, with the rows "
        "of earlier jobs; without replay the bundled instructions), the tasks' own rows, or both.",
    )
    fraction: Fraction = Field(
        default=0.05, description="The fraction of general rows in the supervised tokens, if there is no replay."
    )
    teacher: Text | None = Field(
        default=None,
        description="Another model with the same tokenizer as the reference. By default the starting model.",
    )
    top_k: Count = Field(
        default=64, description="The number of tokens kept of a teacher's distribution; the rest is one bucket."
    )

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        fields = type(self).model_fields
        if self.teacher is not None and self.apply_to != "task":
            raise ValueError("a teacher is used on the tasks' rows only; write apply_to: task")
        if self.teacher is None and self.top_k != fields["top_k"].default:
            raise ValueError("top_k has no effect without a teacher; remove it")
        if self.apply_to == "task" and self.fraction != fields["fraction"].default:
            raise ValueError("fraction has no effect with apply_to: task, which samples no general rows; remove it")
        return self

    def unused_keys(self, job: JobTraits) -> Iterator[tuple[str, str]]:
        if "replay" in job.strategies and self.fraction != type(self).model_fields["fraction"].default:
            yield "fraction", "beside replay, whose rows are used; write replay: {fraction: …}"


class Distill(Strategy):
    """α·T²·KL to the reference on general rows (through `Replay`, which samples them), on the tasks' rows, or both."""

    name = "distill"

    def __init__(self, settings: DistillSettings, teacher_topk: Mapping[bytes, teachers.TopK] | None = None) -> None:
        """`teacher_topk`: the predictions of a teacher on the tasks' rows, by `TokenSequences.key`."""
        self.settings, self.teacher_topk = settings, teacher_topk
        self.applies_to_general_rows = settings.apply_to != "task"
        self.has_loss_on_task_rows = bool(settings.weight) and settings.apply_to != "general"
        self.step_losses: list[DeferredScalar] = []

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if self.teacher_topk is None:
            self.reference = reference_model.ReferenceModel(model)

    def begin_step(self, inputs: TokenSequences) -> int:
        self.reset_step()
        return 0

    def reset_step(self) -> None:
        self.step_losses = []

    def kl_to_reference(self, rows: TokenSequences, logits: torch.Tensor) -> torch.Tensor:
        """Returns T²·KL at each supervised token: [rows.num_supervised_tokens], in nats."""
        return kl_divergence.kl_divergence(self.reference.logits(rows), logits, self.settings.temperature)

    def _kl_to_teacher(self, rows: TokenSequences, logits: torch.Tensor) -> torch.Tensor:
        assert self.teacher_topk is not None
        # One copy to the device for all rows.
        topk = teachers.TopK.concatenate([self.teacher_topk[rows.key(index)] for index in range(len(rows))])
        return topk.kl_divergence(logits, self.settings.temperature)

    def loss_on_task_rows(
        self, rows: TokenSequences, logits: torch.Tensor, loss_denominator: int, weight: float = 1.0
    ) -> torch.Tensor:
        kl = (self.kl_to_reference if self.teacher_topk is None else self._kl_to_teacher)(rows, logits)
        loss = weight * (self.settings.weight * kl.sum() / loss_denominator)
        self.step_losses.append(deferred_scalars.DeferredScalar(loss))
        return loss

    def metrics(self) -> dict[str, float]:
        (loss,) = self.process_group.all_reduce_scalars([sum(map(float, self.step_losses))])
        return {"distill on tasks": loss} if loss else {}


def build(context: ForgettingContext, settings: DistillSettings) -> list[Strategy]:
    """Returns the loss and, without the strategy `replay`, a `Replay` that only samples general rows."""
    teacher_topk = None if settings.teacher is None else _teacher_topk(context, settings, settings.teacher)
    distill = Distill(settings, teacher_topk)
    if not distill.applies_to_general_rows or "replay" in context.strategies:
        return [distill]
    rows, fraction = context.general_answers, settings.fraction
    return [distill, Replay(rows, fraction, context.seed, train_on_rows=False, distill=distill)]


def _teacher_topk(context: ForgettingContext, settings: DistillSettings, teacher: str) -> dict[bytes, teachers.TopK]:
    with base_models.locate_model_errors(context.job, "pipeline", "forgetting", "distill", "teacher"):
        folder = teachers.find_teacher(teacher, context.starting_model_folder)
    cache = context.run.path("training", "teacher.safetensors")
    rows = context.load_split(context.run, "train")
    return teachers.cache_teacher_topk(folder, rows, settings.top_k, settings.temperature, cache)


STRATEGIES.register(
    "distill",
    StrategySpec(
        title="distillation",
        settings=DistillSettings,
        search_space=SearchSpace("weight", (1.0, 3.0, 0.3, 10.0)),
        build=build,
        order=10,
        sweep_variants=("distill", "replay+distill"),
    ),
)
