"""Springs on the weights: a quadratic cost of moving away from where the job starts.

Under LoRA the spring holds the product ΔW = s·B·A, never A and B by themselves: at the start B is 0, and (cB, A/c) is
the same ΔW with other factors. Without an adapter it holds each weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from pipelines.engine.strategy import Strategy


@dataclass(frozen=True)
class Factored:
    """Importance of a matrix [out, in]: `rows[i] * columns[j]`, or with matrices the Kronecker product of both.

    `rows` fp32 [out] or [out, out]; `columns` fp32 [in] or [in, in]. A scalar (shape []) holds all alike.
    """

    rows: torch.Tensor
    columns: torch.Tensor

    def to(self, device: torch.device) -> Factored:
        return Factored(self.rows.to(device), self.columns.to(device))


def _times(metric: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """metric @ matrix, where the metric may be a diagonal or one number."""
    if metric.ndim == 2:
        return metric @ matrix
    return metric[:, None] * matrix if metric.ndim == 1 else metric * matrix


@dataclass(frozen=True)
class LoraPair:
    """One adapted matrix: ΔW = scaling · up · down, `up` [out, r], `down` [r, in]."""

    module: str
    up: torch.nn.Parameter
    down: torch.nn.Parameter
    scaling: float


def lora_pairs(model: torch.nn.Module) -> Iterator[LoraPair]:
    """Every matrix that a PEFT LoRA adapts. `module` is its name in the base model."""
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        for adapter in module.lora_A:
            yield LoraPair(
                name.removeprefix("base_model.model."),
                module.lora_B[adapter].weight,
                module.lora_A[adapter].weight,
                float(module.scaling[adapter]),
            )


def cost_and_gradients(pair: LoraPair, importance: Factored) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """½ Σ F_ij ΔW_ij² and its gradients by `up` and `down`, without ΔW itself: O((out + in) r²).

    With F = rows ⊗ columns it is ½ s² ⟨Bᵀ R B, A C Aᵀ⟩.
    """
    up, down, square = pair.up.detach().float(), pair.down.detach().float(), pair.scaling**2
    held_up, held_down = _times(importance.rows, up), _times(importance.columns, down.T)
    left, right = up.T @ held_up, down @ held_down
    cost = square / 2 * (left * right).sum()
    return cost, square * (held_up @ right), square * (left @ held_down.T)


class LoraSpring(Strategy):
    """strength/2 · Σ F ΔW² as a gradient beside that of the tasks."""

    def __init__(self, name: str, strength: float, importance: Mapping[str, Factored] | None) -> None:
        """`importance` by module; None holds every adapted matrix alike."""
        self.name, self.strength, self.importance = name, strength, importance
        self.cost = 0.0

    def begin(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        one = torch.ones(())
        alike = Factored(one, one)
        self.held = [
            (pair, (self.importance[pair.module] if self.importance is not None else alike).to(pair.up.device))
            for pair in lora_pairs(model)
        ]

    def add_gradients(self) -> None:
        if not self.strength:
            return
        cost = torch.zeros((), device=self.held[0][0].up.device)
        for pair, importance in self.held:
            part, by_up, by_down = cost_and_gradients(pair, importance)
            cost += part
            for weight, gradient in ((pair.up, by_up), (pair.down, by_down)):
                assert weight.grad is not None
                weight.grad.add_(gradient.to(weight.grad.dtype), alpha=self.strength)
        self.cost = float(cost) * self.strength

    def measured(self) -> dict[str, float]:
        return {self.name: self.cost}


class WeightSpring(Strategy):
    """strength/2 · Σ F (θ − θ₀)² on every weight, as a proximal step behind the optimiser's.

    θ ← (Dθ + ηλFθ₀) / (D + ηλF), with D the optimiser's own metric (Adam: √v̂ + ε; plain descent: 1) and η its rate.
    It rests where the gradient of tasks and spring is zero, as the added gradient would, and no λ makes it unstable.
    """

    def __init__(self, name: str, strength: float, importance: Mapping[str, torch.Tensor] | None) -> None:
        """`importance` by the weight's name, in its shape; None holds every weight alike."""
        self.name, self.strength, self.importance = name, strength, importance
        self.cost = 0.0

    def begin(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.held = [
            (weight, weight.detach().clone(), None if self.importance is None else self.importance[name].to(weight.device))
            for name, weight in model.named_parameters()
            if weight.requires_grad and (self.importance is None or name in self.importance)
        ]
        self.importance = None

    @torch.no_grad()
    def after_step(self, task_gradients: object) -> None:
        if not self.strength:
            return
        groups = {id(weight): group for group in self.optimizer.param_groups for weight in group["params"]}
        cost, pull_squared = torch.zeros(()), torch.zeros(())
        for weight, anchor, importance in self.held:
            group = groups[id(weight)]
            force = self.strength * (1.0 if importance is None else importance)
            pull = group["lr"] * force / self._metric(weight, group)
            moved = weight - anchor
            moved /= 1 + pull
            weight.copy_(anchor + moved)
            cost += (0.5 * force * moved.square()).sum().cpu()
            pull_squared += (force * moved).square().sum().cpu()
        self.cost, self.pull = float(cost), float(pull_squared.sqrt())

    def _metric(self, weight: torch.nn.Parameter, group: dict) -> torch.Tensor | float:
        state = self.optimizer.state[weight]
        if "exp_avg_sq" not in state:
            return 1.0
        step = float(state["step"])
        return (state["exp_avg_sq"] / (1 - group["betas"][1] ** step)).sqrt_().add_(group["eps"])

    def measured(self) -> dict[str, float]:
        return {self.name: self.cost}


def spring(
    name: str, strength: float, model_has_adapter: bool, importance: Mapping | None
) -> LoraSpring | WeightSpring:
    """The spring that fits the job: on ΔW under an adapter, on each weight without one."""
    return LoraSpring(name, strength, importance) if model_has_adapter else WeightSpring(name, strength, importance)


