"""LoRA layers with fewer and in-place matrix products, for GPUs.

PEFT computes W x + s B (A x) as separate products and two passes over the whole output, casts the input to the dtype of
the adapter, and adds the two gradients of the input in a further pass. On a GPU these passes are limited by memory
bandwidth and, on short rows, by the number of kernel launches. Here the second product adds to the output of the
first in place (beta = 1), in the forward and the backward pass, as in Unsloth's kernels
(https://github.com/unslothai/unsloth). The result is the same up to the rounding of the dtype.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import nn


def fuse_lora_layers(model: nn.Module) -> int:
    """Replaces the forward pass of the LoRA layers on frozen linear layers, in place. Returns their number.

    The layers stay PEFT's in every other respect: merging, saving and disabling the adapter work as before.
    """
    layers = [module for module in model.modules() if type(module) is LoraLinear and _is_plain(module)]
    for layer in layers:
        layer.__class__ = FusedLoraLinear
    return len(layers)


def _is_plain(layer: LoraLinear) -> bool:
    base = layer.get_base_layer()
    is_frozen = not any(parameter.requires_grad for parameter in base.parameters())
    return type(base) is nn.Linear and is_frozen and not layer.lora_variant and not layer.fan_in_fan_out


class FusedLoraLinear(LoraLinear):
    """PEFT's LoRA layer with a fused forward and backward pass for one active adapter."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapters = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or args or kwargs or len(adapters) != 1 or not self._is_fusable(x):
            return torch.as_tensor(super().forward(x, *args, **kwargs))
        (name,) = adapters
        base, device_type = self.get_base_layer(), x.device.type
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else base.weight.dtype
        lora_A, lora_B = (matrices[name].weight for matrices in (self.lora_A, self.lora_B))
        bias = None if base.bias is None else base.bias.to(dtype)
        output = _FusedLora.apply(
            x.reshape(-1, x.shape[-1]).to(dtype), base.weight.to(dtype), bias, lora_A, lora_B, self.scaling[name]
        )
        return torch.as_tensor(output).view(*x.shape[:-1], -1)

    def _cast_input_dtype(self, x: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """PEFT's cast of the input to the adapter's dtype, which autocast would reverse."""
        if x is not None and torch.is_autocast_enabled(x.device.type):
            return x
        converted: torch.Tensor | None = super()._cast_input_dtype(x, dtype)
        return converted

    def _is_fusable(self, x: torch.Tensor) -> bool:
        """Whether no dropout is drawn, no hook waits for the input of a matrix (Kronecker-factored Fisher), and the
        linear layer is frozen (the importance of SI trains it for a while)."""
        (name,) = [name for name in self.active_adapters if name in self.lora_A]
        dropout, submodules = self.lora_dropout[name], (self.lora_A[name], self.lora_B[name], self.get_base_layer())
        has_dropout = self.training and not isinstance(dropout, nn.Identity) and getattr(dropout, "p", 1) > 0
        has_hooks = any(
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
            for module in submodules
        )
        has_bias = any(matrices[name].bias is not None for matrices in (self.lora_A, self.lora_B))
        is_trained = any(parameter.requires_grad for parameter in self.get_base_layer().parameters())
        return not (has_dropout or has_hooks or has_bias or is_trained)


class _FusedLora(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T, with gradients for x, A and B.

    x [tokens, in], W [out, in] and bias [out] in the dtype of the products; A [r, in] and B [out, r] in their own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_A: torch.Tensor,
        lora_B: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        cast_A, cast_B = lora_A.to(x.dtype), lora_B.to(x.dtype)
        output = F.linear(x, weight, bias)
        hidden = _scaled_product(x, cast_A.t(), scaling)
        output.addmm_(hidden, cast_B.t())
        ctx.save_for_backward(x, weight, hidden, cast_A, cast_B)
        ctx.scaling, ctx.dtypes = scaling, (lora_A.dtype, lora_B.dtype)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = upstream
        x, weight, hidden, lora_A, lora_B = ctx.saved_tensors
        dtype_A, dtype_B = ctx.dtypes
        gradient_x = gradient_A = gradient_B = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
            hidden_gradient = _scaled_product(gradient, lora_B, ctx.scaling)
        if ctx.needs_input_grad[0]:
            gradient_x = (gradient @ weight).addmm_(hidden_gradient, lora_A)
        if ctx.needs_input_grad[3]:
            gradient_A = _product(hidden_gradient.t(), x, dtype_A)
        if ctx.needs_input_grad[4]:
            gradient_B = _product(gradient.t(), hidden, dtype_B)
        return gradient_x, None, None, gradient_A, gradient_B, None


def _scaled_product(left: torch.Tensor, right: torch.Tensor, scaling: float) -> torch.Tensor:
    """scaling · left @ right in one kernel, which scales before it rounds."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scaling)


def _product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """left @ right in `dtype`: in one kernel, and rounded once, where the device can."""
    if left.dtype != dtype and _has_products_in(dtype, left.dtype, left.device):
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)


@cache
def _has_products_in(dtype: torch.dtype, input_dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device multiplies matrices of `input_dtype` into one of `dtype`."""
    matrix = torch.ones(16, 16, dtype=input_dtype, device=device)
    try:
        product = torch.mm(matrix, matrix, out_dtype=dtype)
    except RuntimeError:
        return False
    return product.dtype == dtype and bool((product == 16).all())
