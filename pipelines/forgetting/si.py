"""Synaptic intelligence: a weight matters as much as its moves lowered the loss.

A pretrained model shows no moves, so a short pass of training on general text stands in for them; the weights are put back
afterwards. What the tasks' own training moves is gathered as well, for the job that goes on from this one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines.config.forgetting import Si as Settings
from pipelines.console.activity import doing
from pipelines.forgetting.importance import Importance, load_importance, load_or_compute, save_importance
from pipelines.forgetting.penalty import (
    KroneckerFactors,
    LoraPair,
    LoraQuadraticPenalty,
    ProximalQuadraticPenalty,
    quadratic_penalty,
    trained_pairs,
)
from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.adapters import trained_weights
from pipelines.modeling.packing import token_losses
from pipelines.modeling.token_sequences import TokenSequences, micro_batches

IMPORTANCE_LR = 5e-5
IMPORTANCE_BATCH = 8


class PathIntegral:
    """ω += −g·Δθ over the steps, and what it means per squared move: Ω = max(ω, 0) / (Δ² + ξ).

    ξ is `damping` times the weight matrix' mean squared move: a fixed number would mean another thing at each learning
    rate. On a quadratic ½aθ² under gradient descent at rate η, Ω → a / (2 − ηa) as ξ → 0. (Zenke et al. 2017.)
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self.weights = weights
        self.start = [weight.detach().clone() for weight in weights]
        self.last = [weight.detach().clone() for weight in weights]
        self.omega = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def update(self, gradients: Sequence[torch.Tensor]) -> None:
        """Behind a step: `gradients` are those of the loss alone, unclipped, at the weights before it."""
        for weight, last, omega, gradient in zip(self.weights, self.last, self.omega, gradients, strict=True):
            omega.addcmul_(gradient, last.sub_(weight))  # last is the move now, with its sign turned
            last.copy_(weight)

    @torch.no_grad()
    def importance(self, damping: float) -> list[torch.Tensor]:
        """Ω of each weight, in its shape."""
        found = []
        for weight, start, omega in zip(self.weights, self.start, self.omega, strict=True):
            squared = (weight - start).square()
            found.append(omega.clamp(min=0) / (squared + damping * squared.mean() + torch.finfo(squared.dtype).tiny))
        return found


def as_factors(omega: torch.Tensor) -> KroneckerFactors:
    """The rows and columns of a matrix of importances: their outer product has its row and column sums."""
    total = omega.sum().clamp(min=torch.finfo(omega.dtype).tiny)
    return KroneckerFactors(omega.sum(dim=1), omega.sum(dim=0) / total)


def lora_factors(pair: LoraPair, up: torch.Tensor, down: torch.Tensor, damping: float) -> KroneckerFactors:
    """Importance of the rows of ΔW from the path integral `up` over B, of its columns from `down` over A.

    Σ_k ω_B[i, k] is what row i's move through B lowered the loss, Σ_k ω_A[k, j] what column j's move through A did.
    """
    change = pair.scaling * pair.lora_B.detach() @ pair.lora_A.detach()
    rows, columns = up.sum(dim=1).clamp(min=0), down.sum(dim=0).clamp(min=0)
    moved = change.square().sum(dim=1)
    rows = rows / (moved + damping * moved.mean() + torch.finfo(moved.dtype).tiny)
    return KroneckerFactors(rows, columns / columns.mean().clamp(min=torch.finfo(columns.dtype).tiny))


class Si(Strategy):
    """c · Σ Ω (θ − θ₀)²."""

    name = "si"

    def __init__(
        self,
        settings: Settings,
        general: TokenSequences,
        warm: Path,
        model_id: str,
        seed: int,
        carried: tuple[Path, str] | None,
        keep: Path,
    ) -> None:
        """`warm` keeps the importance that the pass over `general` finds; `carried`: that of the earlier job and its
        model's fingerprint; `keep`: where this job's is written."""
        self.settings, self.general, self.warm, self.model_id, self.seed = settings, general, warm, model_id, seed
        self.carried, self.keep = carried, keep

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.pairs = model, [pair for pair in trained_pairs(model) if pair.lora_A.requires_grad]
        self.penalties: list[LoraQuadraticPenalty | ProximalQuadraticPenalty] = []
        # The penalty has no ½ before it, the quadratic penalties have.
        strength = 2 * self.settings.weight
        if strength:
            found = [load_or_compute(self.warm, self.model_id, self._measure_importance)]
            if self.carried is not None:
                found.append(load_importance(*self.carried))
            self.penalties = [
                quadratic_penalty(self.name, strength, bool(self.pairs), importance) for importance in found
            ]
        for penalty in self.penalties:
            penalty.setup(model, optimizer)
        self.path = PathIntegral(trained_weights(model))

    def _measure_importance(self) -> Importance:
        names, weights = zip(*self._held(), strict=True)
        steps = [
            part
            for _ in range(self.settings.importance_steps)
            for part in micro_batches(self.general, IMPORTANCE_BATCH)
        ]
        steps = steps[: self.settings.importance_steps]
        what = "the importance of the weights for general text"
        with _unfrozen(self.model, weights), doing(what, len(steps), "steps") as activity:
            integral = PathIntegral(weights)
            optimizer = torch.optim.AdamW(weights, lr=IMPORTANCE_LR, weight_decay=0.0)
            for rows in steps:
                optimizer.zero_grad()
                token_losses(self.model, rows).mean().backward()
                gradients = [weight.grad.clone() for weight in weights]
                optimizer.step()
                integral.update(gradients)
                activity.advance(1)
            found = integral.importance(self.settings.damping)
        self.model.zero_grad(set_to_none=True)
        if not self.pairs:
            return dict(zip(names, found, strict=True))
        # GPT-2's Conv1D keeps its matrix as [in, out].
        turned = {name for name, module in self._adapted() if getattr(module, "fan_in_fan_out", False)}
        return {
            name: as_factors(omega.T if name in turned else omega) for name, omega in zip(names, found, strict=True)
        }

    def _adapted(self) -> Iterator[tuple[str, Any]]:
        modules = dict(self.model.named_modules())
        return ((pair.module, modules[f"base_model.model.{pair.module}"]) for pair in self.pairs)

    def _held(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The weights of the base that training moves: under LoRA the matrices that it adapts."""
        if not self.pairs:
            yield from ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
            return
        yield from ((name, module.base_layer.weight) for name, module in self._adapted())

    def add_gradients(self) -> None:
        for penalty in self.penalties:
            penalty.add_gradients()

    def after_step(self, task_gradients: Sequence[torch.Tensor]) -> None:
        for penalty in self.penalties:
            penalty.after_step(())
        self.penalty_grad_norm = sum(penalty.penalty_grad_norm for penalty in self.penalties)
        self.path.update(task_gradients)

    def on_train_end(self, model_id: str) -> None:
        """Writes this job's own importance. `model_id`: the fingerprint of the model that it leaves."""
        found: Importance
        if self.pairs:
            place = {id(weight): number for number, weight in enumerate(self.path.weights)}
            found = {
                pair.module: lora_factors(
                    pair,
                    self.path.omega[place[id(pair.lora_B)]],
                    self.path.omega[place[id(pair.lora_A)]],
                    self.settings.damping,
                )
                for pair in self.pairs
            }
        else:
            names = [name for name, weight in self.model.named_parameters() if weight.requires_grad]
            found = dict(zip(names, self.path.importance(self.settings.damping), strict=True))
        save_importance(self.keep, found, model_id)

    def metrics(self) -> dict[str, float]:
        return {self.name: sum(penalty.cost for penalty in self.penalties)} if self.penalties else {}

    def state_dict(self) -> dict[str, Any]:
        return {f"omega/{number}": omega for number, omega in enumerate(self.path.omega)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Behind the weights' own: the start was noted in `setup`, the last place is where the weights stand now."""
        for number, omega in enumerate(self.path.omega):
            omega.copy_(state[f"omega/{number}"])
        for weight, last in zip(self.path.weights, self.path.last, strict=True):
            last.copy_(weight.detach())


@contextlib.contextmanager
def _unfrozen(model: torch.nn.Module, weights: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """`weights` alone are trained, in fp32; then all is as it was, to the bit."""
    training, trained = model.training, trained_weights(model)
    before = [weight.data for weight in weights]
    model.eval()
    for weight in trained:
        weight.requires_grad_(False)
    for weight in weights:
        weight.data = weight.data.float().clone()
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, data in zip(weights, before, strict=True):
            weight.requires_grad_(False)
            weight.data = data
        for weight in trained:
            weight.requires_grad_(True)
        model.train(training)
