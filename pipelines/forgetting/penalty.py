"""Quadratic penalties on the distance from the weights that a job starts from.

Under LoRA the penalty is on the product ΔW = s·B·A, not on A and B: at the start B is 0, and (cB, A/c) is the same ΔW
with other factors. Without an adapter it is on each weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.errors import ConfigError
from pipelines.forgetting.optimizer_metric import divided_by_metric
from pipelines.modeling.adapters import disabled_adapter_is_base
from pipelines.modeling.deferred_scalars import DeferredScalar


@dataclass(frozen=True)
class FactoredImportance:
    """The importance of a matrix [out, in] in two factors.

    It is the outer product of two vectors, `output[i] * input[j]`, or the Kronecker product of two matrices as in K-FAC
    (Martens & Grosse 2015, arXiv:1503.05671).
    `output` fp32 [out] or [out, out]; `input` fp32 [in] or [in, in]. A scalar (shape []) stands for a constant factor.
    """

    output: torch.Tensor
    input: torch.Tensor


Importance = Mapping[str, torch.Tensor] | Mapping[str, FactoredImportance]
"""The importance of trained weights by their names, in their shapes; under LoRA of adapted matrices by module."""


def _apply_factor(factor: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Returns factor @ matrix for one matrix or a stack of them, where the factor may be a diagonal or a scalar."""
    if factor.ndim == matrix.ndim:
        return factor @ matrix
    return factor[..., None] * matrix if factor.ndim == matrix.ndim - 1 else factor * matrix


@dataclass(frozen=True)
class LoraPair:
    """One adapted matrix: ΔW = scaling · lora_B @ lora_A, with `lora_B` [out, r] and `lora_A` [r, in]."""

    module: str
    lora_B: torch.nn.Parameter
    lora_A: torch.nn.Parameter
    scaling: float


def lora_pairs(model: torch.nn.Module) -> Iterator[LoraPair]:
    """Yields every matrix that a PEFT LoRA adapts. `module` is its name in the base model."""
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
    """Yields those of `lora_pairs` that are trained; a pair that `layers_to_freeze_regex` freezes stays at ΔW = 0."""
    return (pair for pair in lora_pairs(model) if pair.lora_B.requires_grad)


def check_penalty_covers_adapter(name: str, model: torch.nn.Module) -> None:
    """Raises ConfigError if the penalty of the strategy `name` would not protect the base.

    An adapter may train a weight that the penalty does not cover, or its initial ΔW may not be 0.
    """
    anchored = {id(weight) for pair in lora_pairs(model) for weight in (pair.lora_B, pair.lora_A)}
    uncovered = [
        weight_name
        for weight_name, weight in model.named_parameters()
        if weight.requires_grad and id(weight) not in anchored
    ]
    if uncovered:
        weight_name = uncovered[0].removeprefix("base_model.model.").replace(".default", "")
        raise ConfigError(
            f"pipeline.forgetting.strategy: {name} covers LoRA's matrices of linear layers, and {weight_name} is "
            f"trained as well; remove it from adapter.target_modules, or use replay+distill"
        )
    if not disabled_adapter_is_base(model):
        raise ConfigError(
            f"pipeline.forgetting.strategy: {name} needs an adapter that leaves the base's weights as they are; write "
            f"init_lora_weights: default"
        )


def value_and_gradients(
    lora_B: torch.Tensor, lora_A: torch.Tensor, scaling: float, importance: FactoredImportance
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns ½ Σ F_ij ΔW_ij² and its gradients with respect to `lora_B` [..., out, r] and `lora_A` [..., r, in].

    ΔW itself is not computed. With F = output ⊗ input the value is ½ s² ⟨Bᵀ·output·B, A·input·Aᵀ⟩, in O((out + in) r²).
    """
    weighted_B, weighted_A = _apply_factor(importance.output, lora_B), _apply_factor(importance.input, lora_A.mT)
    gram_B, gram_A = lora_B.mT @ weighted_B, lora_A @ weighted_A
    value = scaling**2 / 2 * (gram_B * gram_A).sum()
    return value, scaling**2 * (weighted_B @ gram_A), scaling**2 * (gram_B @ weighted_A.mT)


class LoraQuadraticPenalty:
    """weight/2 · Σ F ΔW² as an additional gradient. `value` is its value in the last step, in nats."""

    grad_norm = 0.0

    def __init__(
        self, model: torch.nn.Module, weight: float, importance: Mapping[str, FactoredImportance] | None
    ) -> None:
        """`importance` by module; None weighs every entry of every adapted matrix with 1."""
        self.weight = weight
        self._value: DeferredScalar | None = None
        # Pairs of the same shape are computed as one stack: hundreds of small products would take longer than the step.
        by_shape: dict[object, list[LoraPair]] = {}
        for pair in trained_pairs(model):
            by_shape.setdefault((pair.lora_B.shape, pair.lora_A.shape, pair.scaling), []).append(pair)
        self.stacks = [(pairs, _stack(pairs, importance)) for pairs in by_shape.values()]

    def add_gradients(self) -> None:
        if not self.weight or not self.stacks:
            return
        value = torch.zeros((), device=self.stacks[0][0][0].lora_B.device)
        for pairs, importance in self.stacks:
            both = [pair.lora_B for pair in pairs], [pair.lora_A for pair in pairs]
            lora_B, lora_A = (torch.stack([matrix.detach().float() for matrix in matrices]) for matrices in both)
            stack_value, *gradients = value_and_gradients(lora_B, lora_A, pairs[0].scaling, importance)
            value += stack_value
            for matrices, stacked_gradients in zip(both, gradients, strict=True):
                for matrix, gradient in zip(matrices, stacked_gradients, strict=True):
                    self._add_gradient(matrix, gradient)
        self._value = DeferredScalar(value)

    @property
    def value(self) -> float:
        return 0.0 if self._value is None else float(self._value) * self.weight

    def _add_gradient(self, matrix: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        if not matrix.requires_grad:
            return
        if matrix.grad is None:  # no row of this step has used the matrix
            matrix.grad = torch.zeros_like(matrix)
        matrix.grad.add_(gradient.to(matrix.grad.dtype), alpha=self.weight)

    def after_step(self) -> None:
        """Does nothing: the penalty is part of the gradient."""


def _stack(pairs: Sequence[LoraPair], importance: Mapping[str, FactoredImportance] | None) -> FactoredImportance:
    """Returns the importance of pairs of one shape with a leading dimension [len(pairs)]."""
    if importance is None:
        constant = torch.ones((), device=pairs[0].lora_B.device)
        return FactoredImportance(constant, constant)
    factors, device = [importance[pair.module] for pair in pairs], pairs[0].lora_B.device
    return FactoredImportance(
        _stack_on([factor.output for factor in factors], device),
        _stack_on([factor.input for factor in factors], device),
    )


def _stack_on(tensors: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Returns torch.stack of the tensors on `device`, without a stack on their own device."""
    first = tensors[0]
    stacked = torch.empty((len(tensors), *first.shape), dtype=first.dtype, device=device)
    for target, tensor in zip(stacked, tensors, strict=True):
        target.copy_(tensor)
    return stacked


class ProximalQuadraticPenalty:
    """weight/2 · Σ F (θ − θ₀)² on every weight, as a proximal step after that of the optimizer.

    θ ← (Dθ + ηλFθ₀) / (D + ηλF), with D the metric of the optimizer (Adam: √v̂ + ε; gradient descent: 1; see
    `pipelines.forgetting.optimizer_metric`) and η its learning rate. The fixed point is that of an added gradient,
    where the gradients of the tasks and the penalty cancel, and the step is stable for every λ. `value` is the penalty
    after the last step, in nats; `grad_norm` the norm of its gradient.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        weight: float,
        importance: Mapping[str, torch.Tensor] | None,
    ) -> None:
        """`importance` by the parameter's name, in its shape; None weighs every parameter with 1."""
        self.optimizer, self.weight = optimizer, weight
        self._value: DeferredScalar | None = None
        self._grad_norm: DeferredScalar | None = None
        self.anchored = [
            (
                parameter,
                parameter.detach().clone(),
                None if importance is None else importance[name].to(parameter.device),
            )
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and (importance is None or name in importance)
        ]

    def add_gradients(self) -> None:
        """Does nothing: the penalty acts after the optimizer's step."""

    @torch.no_grad()
    def after_step(self) -> None:
        if not self.weight:
            return
        groups = {id(parameter): group for group in self.optimizer.param_groups for parameter in group["params"]}
        device = self.anchored[0][0].device if self.anchored else None
        value, squared_norm = torch.zeros((), device=device), torch.zeros((), device=device)
        for parameter, anchor, importance in self.anchored:
            # In place throughout: these tensors are as large as the model, and the step needs several of them.
            group = groups[id(parameter)]
            step_ratio = divided_by_metric(self.optimizer, parameter, group, self.weight * group["lr"])
            distance = parameter - anchor
            distance /= step_ratio.mul_(1.0 if importance is None else importance).add_(1)
            torch.add(anchor, distance, out=parameter)
            weighted_distance = distance if importance is None else torch.mul(distance, importance, out=step_ratio)
            value += 0.5 * self.weight * torch.dot(weighted_distance.flatten(), distance.flatten())
            squared_norm += (self.weight * weighted_distance).square().sum()
        self._value, self._grad_norm = DeferredScalar(value), DeferredScalar(squared_norm.sqrt())

    @property
    def value(self) -> float:
        return float(self._value) if self._value is not None else 0.0

    @property
    def grad_norm(self) -> float:
        return float(self._grad_norm) if self._grad_norm is not None else 0.0


class PenaltySet:
    """The quadratic penalties of one strategy: on ΔW under LoRA, on each weight without an adapter."""

    def __init__(self, strategy: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """`model` has the weights that the job starts from; `strategy` is the name for error messages."""
        self.strategy, self.model, self.optimizer = strategy, model, optimizer
        self.has_lora = any(hasattr(module, "lora_A") for module in model.modules())
        self._penalties: list[LoraQuadraticPenalty | ProximalQuadraticPenalty] = []

    def add(self, weight: float, importance: Any | None) -> None:
        """Adds a penalty with `importance` (an `Importance`), None for the same importance everywhere.

        Raises ConfigError for an adapter that the penalty does not fully cover.
        """
        if self.has_lora:
            check_penalty_covers_adapter(self.strategy, self.model)
            self._penalties.append(LoraQuadraticPenalty(self.model, weight, importance))
        else:
            self._penalties.append(ProximalQuadraticPenalty(self.model, self.optimizer, weight, importance))

    def __len__(self) -> int:
        return len(self._penalties)

    def __iter__(self) -> Iterator[LoraQuadraticPenalty | ProximalQuadraticPenalty]:
        return iter(self._penalties)

    def add_gradients(self) -> None:
        for penalty in self._penalties:
            penalty.add_gradients()

    def after_step(self) -> None:
        for penalty in self._penalties:
            penalty.after_step()

    @property
    def value(self) -> float:
        """The value of the penalties in the last step, in nats per token."""
        return sum(penalty.value for penalty in self._penalties)

    @property
    def grad_norm(self) -> float:
        """An upper bound of the norm of the gradient that is equivalent to the proximal steps."""
        return sum(penalty.grad_norm for penalty in self._penalties)
