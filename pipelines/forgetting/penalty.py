"""Springs on the weights: a quadratic cost of moving away from where the job starts.

Under LoRA the spring holds the product ΔW = s·B·A, never A and B by themselves: at the start B is 0, and (cB, A/c) is
the same ΔW with other factors. Without an adapter it holds each weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from pipelines.errors import ConfigError
from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.adapters import disabled_adapter_is_base


@dataclass(frozen=True)
class KroneckerFactors:
    """Importance of a matrix [out, in]: `output[i] * input[j]`, or with matrices the Kronecker product of both.

    `output` fp32 [out] or [out, out]; `input` fp32 [in] or [in, in]. A scalar (shape []) holds all alike.
    """

    output: torch.Tensor
    input: torch.Tensor

    def to(self, device: torch.device) -> KroneckerFactors:
        return KroneckerFactors(self.output.to(device), self.input.to(device))


def _apply_factor(metric: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """metric @ matrix, of one or of a stack, where the metric may be a diagonal or one number."""
    if metric.ndim == matrix.ndim:
        return metric @ matrix
    return metric[..., None] * matrix if metric.ndim == matrix.ndim - 1 else metric * matrix


@dataclass(frozen=True)
class LoraPair:
    """One adapted matrix: ΔW = scaling · lora_B @ lora_A, `lora_B` [out, r], `lora_A` [r, in]."""

    module: str
    lora_B: torch.nn.Parameter
    lora_A: torch.nn.Parameter
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


def trained_pairs(model: torch.nn.Module) -> Iterator[LoraPair]:
    """Those of `lora_pairs` that training moves; one that `layers_to_freeze_regex` holds stays at ΔW = 0 by itself."""
    return (pair for pair in lora_pairs(model) if pair.lora_B.requires_grad)


def refuse_others(name: str, model: torch.nn.Module) -> None:
    """Raises ConfigError where an adapter trains something that the penalty would not hold, or where the adapter does
    not begin at ΔW = 0: `name` would then protect the base in appearance only."""
    held = {id(weight) for pair in lora_pairs(model) for weight in (pair.lora_B, pair.lora_A)}
    others = [place for place, weight in model.named_parameters() if weight.requires_grad and id(weight) not in held]
    if others:
        what = others[0].removeprefix("base_model.model.").replace(".default", "")
        raise ConfigError(
            f"pipeline.forgetting.strategy: {name} holds LoRA's matrices of linear layers, and {what} is trained as well; "
            f"take it out of adapter.target_modules, or take replay+distill"
        )
    if not disabled_adapter_is_base(model):
        raise ConfigError(
            f"pipeline.forgetting.strategy: {name} needs an adapter that leaves the base's weights as they are; write "
            f"init_lora_weights: default"
        )


def cost_and_gradients(
    up: torch.Tensor, down: torch.Tensor, scaling: float, importance: KroneckerFactors
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """½ Σ F_ij ΔW_ij² and its gradients by `up` [..., out, r] and `down` [..., r, in], without ΔW itself: O((out + in) r²).

    With F = output ⊗ input it is ½ s² ⟨Bᵀ R B, A C Aᵀ⟩.
    """
    held_up, held_down = _apply_factor(importance.output, up), _apply_factor(importance.input, down.mT)
    left, right = up.mT @ held_up, down @ held_down
    cost = scaling**2 / 2 * (left * right).sum()
    return cost, scaling**2 * (held_up @ right), scaling**2 * (left @ held_down.mT)


class LoraQuadraticPenalty(Strategy):
    """strength/2 · Σ F ΔW² as a gradient beside that of the tasks."""

    def __init__(self, name: str, strength: float, importance: Mapping[str, KroneckerFactors] | None) -> None:
        """`importance` by module; None holds every adapted matrix alike."""
        self.name, self.strength, self.importance = name, strength, importance
        self.cost = 0.0

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        refuse_others(self.name, model)
        # Matrices of a shape go through the arithmetic together: hundreds of small products would cost more than a step may.
        alike: dict[object, list[LoraPair]] = {}
        for pair in trained_pairs(model):
            alike.setdefault((pair.lora_B.shape, pair.lora_A.shape, pair.scaling), []).append(pair)
        self.held = [(pairs, self._stacked(pairs)) for pairs in alike.values()]

    def _stacked(self, pairs: Sequence[LoraPair]) -> KroneckerFactors:
        if self.importance is None:
            one = torch.ones((), device=pairs[0].lora_B.device)
            return KroneckerFactors(one, one)
        each = [self.importance[pair.module] for pair in pairs]
        stacked = KroneckerFactors(torch.stack([one.output for one in each]), torch.stack([one.input for one in each]))
        return stacked.to(pairs[0].lora_B.device)

    def add_gradients(self) -> None:
        if not self.strength:
            return
        cost = torch.zeros((), device=self.held[0][0][0].lora_B.device)
        for pairs, importance in self.held:
            up, down = (torch.stack([weight.detach().float() for weight in some]) for some in _both(pairs))
            part, *gradients = cost_and_gradients(up, down, pairs[0].scaling, importance)
            cost += part
            for weights, gradient in zip(_both(pairs), gradients, strict=True):
                for weight, its in zip(weights, gradient, strict=True):
                    if not weight.requires_grad:
                        continue
                    if weight.grad is None:  # no row of this step has used it
                        weight.grad = torch.zeros_like(weight)
                    weight.grad.add_(its.to(weight.grad.dtype), alpha=self.strength)
        self.cost = float(cost) * self.strength

    def metrics(self) -> dict[str, float]:
        return {self.name: self.cost}


def _both(pairs: Sequence[LoraPair]) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    return [pair.lora_B for pair in pairs], [pair.lora_A for pair in pairs]


class ProximalQuadraticPenalty(Strategy):
    """strength/2 · Σ F (θ − θ₀)² on every weight, as a proximal step behind the optimiser's.

    θ ← (Dθ + ηλFθ₀) / (D + ηλF), with D the optimiser's own metric (Adam: √v̂ + ε; plain descent: 1) and η its rate.
    It rests where the gradient of tasks and spring is zero, as the added gradient would, and no λ makes it unstable.
    """

    def __init__(self, name: str, strength: float, importance: Mapping[str, torch.Tensor] | None) -> None:
        """`importance` by the weight's name, in its shape; None holds every weight alike."""
        self.name, self.strength, self.importance = name, strength, importance
        self.cost = 0.0

    def setup(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.held = [
            (
                weight,
                weight.detach().clone(),
                None if self.importance is None else self.importance[name].to(weight.device),
            )
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
            # In place throughout: these are as many numbers as the model has weights, several times a step.
            group = groups[id(weight)]
            pull = self._over_metric(weight, group, self.strength * group["lr"])
            moved = weight - anchor
            moved /= pull.mul_(1.0 if importance is None else importance).add_(1)
            torch.add(anchor, moved, out=weight)
            force = moved if importance is None else torch.mul(moved, importance, out=pull)
            cost += (0.5 * self.strength * torch.dot(force.flatten(), moved.flatten())).cpu()
            pull_squared += (self.strength * force).square().sum().cpu()
        self.cost, self.penalty_grad_norm = float(cost), float(pull_squared.sqrt())

    def _over_metric(self, weight: torch.nn.Parameter, group: dict, number: float) -> torch.Tensor:
        """number / D, in the weight's shape."""
        state = self.optimizer.state[weight]
        if "exp_avg_sq" not in state:
            return torch.full_like(weight, number)
        step = float(state["step"])
        metric: torch.Tensor = (state["exp_avg_sq"] / (1 - group["betas"][1] ** step)).sqrt_().add_(group["eps"])
        return metric.reciprocal_().mul_(number)

    def metrics(self) -> dict[str, float]:
        return {self.name: self.cost}


def quadratic_penalty(
    name: str, strength: float, model_has_adapter: bool, importance: Mapping | None
) -> LoraQuadraticPenalty | ProximalQuadraticPenalty:
    """The penalty that fits the job: on ΔW under an adapter, on each weight without one."""
    return (
        LoraQuadraticPenalty(name, strength, importance)
        if model_has_adapter
        else ProximalQuadraticPenalty(name, strength, importance)
    )
