"""Synaptic intelligence (SI): c · Σ Ω (θ − θ₀)², with Ω from how much the moves of each weight lowered the loss.

Zenke et al. 2017, arXiv:1703.04200. A pretrained model has no recorded training trajectory, so Ω is measured in a few
steps of training on general text, after which the weights are restored. The trajectory of the job's own training is
recorded as well, for a job that continues from this one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pipelines.config.base import Count, NotNegative, Positive
from pipelines.config.strategy_registry import STRATEGIES, JobTraits, SearchSpace, StrategySettings, StrategySpec
from pipelines.console.activity import track_activity
from pipelines.forgetting.requirements import penalty_conflict
from pipelines.forgetting.strategy import PenaltyStrategy
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import torch

    from pipelines.forgetting import importance as importance_files
    from pipelines.forgetting import memory_estimate, penalty
    from pipelines.forgetting.context import ForgettingContext
    from pipelines.modeling import adapters, loss_scaling, memory, mixed_precision, packing, token_sequences
    from pipelines.modeling.token_sequences import TokenSequences
else:
    torch = lazy_import("torch")
    importance_files = lazy_import("pipelines.forgetting.importance")  # torch
    memory_estimate = lazy_import("pipelines.forgetting.memory_estimate")  # torch
    penalty = lazy_import("pipelines.forgetting.penalty")  # torch
    adapters = lazy_import("pipelines.modeling.adapters")  # torch
    loss_scaling = lazy_import("pipelines.modeling.loss_scaling")  # torch
    memory = lazy_import("pipelines.modeling.memory")  # torch
    mixed_precision = lazy_import("pipelines.modeling.mixed_precision")  # torch
    packing = lazy_import("pipelines.modeling.packing")  # torch
    token_sequences = lazy_import("pipelines.modeling.token_sequences")  # numpy

IMPORTANCE_LR = 5e-5
"""The learning rate of AdamW in the steps that measure the importance."""
IMPORTANCE_BATCH = 8
"""Sequences of general text per step of the measurement."""
SI_FILE = "si.safetensors"
"""The file in the folder `forgetting` of a run that holds the importance measured in its own training."""


class SiSettings(StrategySettings):
    """Synaptic intelligence: a quadratic penalty on the weights whose moves lowered the loss on general text.

    Zenke et al. 2017, arXiv:1703.04200.
    """

    weight: NotNegative = Field(default=1.0, description="The weight c of the penalty.")
    damping: Positive = Field(
        default=0.1,
        description="The damping ξ, as a multiple of the mean squared move of a matrix: the larger, the less important "
        "are weights that hardly moved.",
    )
    importance_steps: Count = Field(
        default=24, description="The training steps on general text that measure the importance, each of 8 sequences."
    )


class PathIntegral:
    """The path integral ω += −g·Δθ over training steps, and the importance Ω = max(ω, 0) / (Δ² + ξ) of each weight.

    ξ is `damping` times the mean squared move of the weight matrix: a constant would mean something else at every
    learning rate. On a quadratic ½aθ² under gradient descent with learning rate η, Ω → a / (2 − ηa) as ξ → 0.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self.weights = weights
        self.start = [weight.detach().clone() for weight in weights]
        self.previous = [weight.detach().clone() for weight in weights]
        self.omega = [torch.zeros_like(weight) for weight in weights]

    def update(self, gradients: Sequence[torch.Tensor]) -> None:
        """Runs after an optimizer step.

        `gradients` are those of the loss without penalty, unclipped, at the weights before the step.
        """
        with torch.no_grad():
            for weight, previous, omega, gradient in zip(
                self.weights, self.previous, self.omega, gradients, strict=True
            ):
                omega.addcmul_(gradient, previous.sub_(weight))  # previous − weight is −Δθ
                previous.copy_(weight)

    def importance(self, damping: float) -> list[torch.Tensor]:
        """Returns Ω of each weight, in its shape. The weights may have been moved off the GPU after the training."""
        with torch.no_grad():
            return [
                omega.clamp(min=0) / _damped((weight.to(start.device) - start).square(), damping)
                for weight, start, omega in zip(self.weights, self.start, self.omega, strict=True)
            ]


def _damped(squared_move: torch.Tensor, damping: float) -> torch.Tensor:
    return squared_move + damping * squared_move.mean() + torch.finfo(squared_move.dtype).tiny


def factorize(omega: torch.Tensor) -> penalty.FactoredImportance:
    """Returns the factors whose outer product has the row and column sums of the importance `omega` [out, in]."""
    total = omega.sum().clamp(min=torch.finfo(omega.dtype).tiny)
    return penalty.FactoredImportance(omega.sum(dim=1), omega.sum(dim=0) / total)


def lora_factors(
    pair: penalty.LoraPair, omega_B: torch.Tensor, omega_A: torch.Tensor, damping: float
) -> penalty.FactoredImportance:
    """Returns the importance of ΔW: of its rows from `omega_B`, of its columns from `omega_A` (path integrals).

    Σ_k ω_B[i, k] is the decrease of the loss by the moves of row i through B, Σ_k ω_A[k, j] that by column j through A.
    """
    delta = pair.scaling * pair.lora_B.detach() @ pair.lora_A.detach()
    rows, columns = omega_B.sum(dim=1).clamp(min=0), omega_A.sum(dim=0).clamp(min=0)
    rows = rows / _damped(delta.square().sum(dim=1), damping)
    return penalty.FactoredImportance(rows, columns / columns.mean().clamp(min=torch.finfo(columns.dtype).tiny))


@dataclass(frozen=True)
class SiFiles:
    """The importance files of a job."""

    general: Path
    """The cache of the importance on general text."""
    output: Path
    """The file to which the importance of this job's own training is written."""
    earlier: tuple[Path, str] | None = None
    """The file of the run that this job continues from, and the fingerprint of that run's model."""


class Si(PenaltyStrategy):
    """c · Σ Ω (θ − θ₀)², one penalty for general text and one for the tasks of the earlier run."""

    name = "si"

    def __init__(
        self, settings: SiSettings, general_text: TokenSequences, files: SiFiles, model_fingerprint: str
    ) -> None:
        """`model_fingerprint` is the fingerprint of the weights that the job starts from."""
        self.settings, self.general_text, self.files, self.model_fingerprint = (
            settings,
            general_text,
            files,
            model_fingerprint,
        )

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.pairs = [pair for pair in penalty.trained_pairs(model) if pair.lora_A.requires_grad]
        self.penalties = penalty.PenaltySet(self.name, model, optimizer)
        if self.settings.weight:
            self._check_memory()
            importances = [
                importance_files.load_or_compute(
                    self.files.general, self.model_fingerprint, self._measure_importance, self.process_group
                )
            ]
            if self.files.earlier is not None:
                importances.append(importance_files.load_importance(*self.files.earlier))
            for importance in importances:
                self.penalties.add(
                    2 * self.settings.weight, importance
                )  # a quadratic penalty has a factor ½, SI has none
        self.path = PathIntegral(adapters.trainable_parameters(model))

    def _check_memory(self) -> None:
        """Raises MachineError if the measurement or the penalties do not fit into memory."""
        trained = adapters.trainable_parameters(self.model)
        need = memory_estimate.path_integral(
            trained,
            [weight for _, weight in self._anchored_weights()],
            num_penalties=1 if self.files.earlier is None else 2,
            has_lora=bool(self.pairs),
            is_measured=self.files.general.exists(),
        )
        advice = "use ewc, or name fewer adapter.target_modules" if self.pairs else "use an adapter, or replay+distill"
        need.check("pipeline.forgetting.si, which trains the base weights temporarily,", advice, trained[0].device)

    def _measure_importance(self) -> penalty.Importance:
        """Trains the anchored weights for a few steps on general text and restores them."""
        names, weights = zip(*self._anchored_weights(), strict=True)
        with _trained_temporarily(self.model, weights):
            importances = self._train_on_general_text(weights).importance(self.settings.damping)
        self.model.zero_grad(set_to_none=True)
        if not self.pairs:
            return dict(zip(names, importances, strict=True))
        # GPT-2's Conv1D stores its matrix as [in, out].
        transposed = {name for name, module in self._adapted_modules() if getattr(module, "fan_in_fan_out", False)}
        return {
            name: factorize(importance.T if name in transposed else importance)
            for name, importance in zip(names, importances, strict=True)
        }

    def _train_on_general_text(self, weights: Sequence[torch.nn.Parameter]) -> PathIntegral:
        num_steps = self.settings.importance_steps
        batches = [
            batch
            for _ in range(num_steps)
            for batch in token_sequences.micro_batches(self.general_text, IMPORTANCE_BATCH)
        ][:num_steps]
        integral = PathIntegral(weights)
        optimizer = torch.optim.AdamW(weights, lr=IMPORTANCE_LR, weight_decay=0.0)
        scaler = loss_scaling.LossScaler(mixed_precision.autocast_dtype(weights[0].device) == torch.float16)
        with track_activity("the importance of the weights for general text", num_steps, "steps") as activity:
            for batch in batches:
                self._backward_mean_loss(batch, scaler, weights)
                self._sum_gradients(weights)
                scaler.unscale_(weights)
                if not scaler.update():
                    optimizer.step()
                    integral.update([weight.grad for weight in weights if weight.grad is not None])
                activity.advance(1)
        return integral

    def _backward_mean_loss(
        self, batch: TokenSequences, scaler: loss_scaling.LossScaler, weights: Sequence[torch.nn.Parameter]
    ) -> None:
        """Computes the gradient of the mean loss of `batch`, of which this process adds the part of its shard.

        It is computed in smaller parts if memory runs out.
        """
        num_tokens = batch.num_supervised_tokens
        shard = self.process_group.shard(batch)

        def accumulate(part_size: int) -> None:
            for weight in weights:
                weight.grad = None
            for part in token_sequences.micro_batches(shard, part_size):
                with mixed_precision.autocast(device):
                    losses = packing.token_losses(self.model, part)
                    loss = losses.mean() if len(part) == len(batch) else losses.sum() / num_tokens
                scaler.scale(loss).backward()

        device = next(self.model.parameters()).device
        memory.halve_until_it_fits(accumulate, IMPORTANCE_BATCH, shard, "the measurement of si's importance")

    def _sum_gradients(self, weights: Sequence[torch.nn.Parameter]) -> None:
        """Replaces the gradients by their sums over the processes."""
        if self.process_group.world_size == 1:
            return
        for weight in weights:
            if weight.grad is None:  # there are more processes than rows
                weight.grad = torch.zeros_like(weight)
        self.process_group.all_reduce_sum([weight.grad for weight in weights if weight.grad is not None])

    def _adapted_modules(self) -> Iterator[tuple[str, Any]]:
        modules = dict(self.model.named_modules())
        return ((pair.module, modules[f"base_model.model.{pair.module}"]) for pair in self.pairs)

    def _anchored_weights(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yields the base weights that training moves, by name; under LoRA the adapted matrices, by module."""
        if not self.pairs:
            yield from ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
            return
        yield from ((name, module.base_layer.weight) for name, module in self._adapted_modules())

    def after_step(self, task_row_gradients: Sequence[torch.Tensor]) -> None:
        super().after_step(task_row_gradients)
        self.path.update(task_row_gradients)

    def on_train_end(self, model_fingerprint: str) -> None:
        """Writes the importance of this job's own training."""
        importance: penalty.Importance
        if self.pairs:
            pairs = zip(self.path.weights, self.path.omega, strict=True)
            omega = {id(weight): omega.to(weight.device) for weight, omega in pairs}
            importance = {
                pair.module: lora_factors(pair, omega[id(pair.lora_B)], omega[id(pair.lora_A)], self.settings.damping)
                for pair in self.pairs
            }
        else:
            names = [name for name, weight in self.model.named_parameters() if weight.requires_grad]
            importance = dict(zip(names, self.path.importance(self.settings.damping), strict=True))
        importance_files.save_importance(self.files.output, importance, model_fingerprint)

    def state_dict(self) -> dict[str, Any]:
        return {f"omega/{index}": omega for index, omega in enumerate(self.path.omega)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores ω. `setup` has recorded the starting weights; the previous weights are those of the checkpoint."""
        for index, omega in enumerate(self.path.omega):
            omega.copy_(state[f"omega/{index}"])
        for weight, previous in zip(self.path.weights, self.path.previous, strict=True):
            previous.copy_(weight.detach())


@contextlib.contextmanager
def _trained_temporarily(model: torch.nn.Module, weights: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Makes `weights` the only trained parameters, as fp32 copies, and restores the model bitwise afterwards."""
    training, trained = model.training, adapters.trainable_parameters(model)
    original = [weight.data for weight in weights]
    model.eval()
    for weight in trained:
        weight.requires_grad_(False)
    for weight in weights:
        weight.data = weight.data.float().clone()
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, data in zip(weights, original, strict=True):
            weight.requires_grad_(False)
            weight.data = data
        for weight in trained:
            weight.requires_grad_(True)
        model.train(training)


def build(context: ForgettingContext, settings: SiSettings) -> list[Si]:
    general_text = context.sample_general_text(settings.importance_steps * IMPORTANCE_BATCH)
    earlier_run = next(iter(context.earlier_runs), None)
    earlier = None
    if earlier_run is not None and earlier_run.path("forgetting", SI_FILE).exists():
        earlier = earlier_run.path("forgetting", SI_FILE), context.fingerprint_of_run(earlier_run)
    measurement = [settings.importance_steps, settings.damping]
    files = SiFiles(
        general=context.importance_file("si", general_text, measurement),
        output=context.run.path("forgetting", SI_FILE),
        earlier=earlier,
    )
    return [Si(settings, general_text, files, context.model_fingerprint)]


def conflict(job: JobTraits) -> str | None:
    reason = "si trains the base weights temporarily, which is not supported"
    if job.is_quantized:
        return f"{reason} with quantization; use ewc, or no quantization"
    if (message := penalty_conflict("si", job)) is not None:
        return message
    if job.is_base_sharded:
        return f"{reason} with backend.trainer.fsdp; use ewc, or no fsdp"
    return None


STRATEGIES.register(
    "si",
    StrategySpec(
        title="synaptic intelligence",
        settings=SiSettings,
        search_space=SearchSpace("weight", (1.0, 10.0, 0.1, 100.0)),
        build=build,
        conflict=conflict,
        order=40,
    ),
)
