"""Linear layers with weights in the blocked layout of oneDNN, for inference on a CPU.

`F.linear` uses the weights as they lie in memory. Products with weights that were reordered once take two thirds of the
time where few rows are multiplied, as in decoding (docs/speed.md, `python -m tests.benchmarks.packed_weights`). The
operators are those that torch's compiler inserts when it freezes a model. LoRA matrices are added to the reordered
copy, so that adapted layers cost one product as well. The weights of the model stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from pipelines.modeling.equivalence import outputs_match, probe_logits
from pipelines.modeling.memory import free_memory

MEMORY_FRACTION = 1 / 3
"""The largest part of the free memory that the packed copies may take."""
MIN_WIDTH = 16
"""Narrower layers, such as the matrices of LoRA, are left as they are."""
BATCH_SIZE_HINT = 32
"""The rows that the layout is chosen for; it is used for any number of them."""


@dataclass(frozen=True)
class PackedWeights:
    """The packed layers of one model, with the adapter as it was when they were packed.

    Attributes:
        layers: each replaced module with its packed weight and bias.
    """

    layers: list[tuple[nn.Module, torch.Tensor, torch.Tensor | None]]

    @classmethod
    def pack(cls, model: nn.Module) -> PackedWeights | None:
        """Packs the linear layers of a model in evaluation mode.

        None if it is not in fp32 on a CPU with oneDNN, if memory does not suffice, or if the packed model does not have
        the logits of `model`, which is tried once per model.
        """
        # The record is the model's own: a PEFT model would look up that of the model inside.
        is_rejected = vars(model).get("is_packing_rejected", False)
        if is_rejected or model.training or not _has_operators() or not _fits_memory(model):
            return None
        packed = cls(list(_packed_layers(model)))
        if "is_packing_rejected" not in vars(model):
            model.is_packing_rejected = not packed._has_logits_of(model)  # type: ignore[assignment]
            if model.is_packing_rejected:
                return None
        return packed if packed.layers else None

    def _has_logits_of(self, model: nn.Module) -> bool:
        expected = probe_logits(model)
        try:
            with self.in_use():
                return outputs_match(probe_logits(model), expected, fp32=True)
        except RuntimeError:  # a processor without kernels for these shapes
            return False

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the block, the model computes with the packed weights wherever no gradients are recorded.

        Layers whose adapter is switched on or off within the block compute with their own weights until it is back.
        """
        for module, weight, bias in self.layers:
            vars(module)["forward"] = _packed_forward(module, weight, bias)
        try:
            yield
        finally:
            for module, *_ in self.layers:
                vars(module).pop("forward", None)


@contextlib.contextmanager
def packed_weights(model: nn.Module) -> Iterator[bool]:
    """Packs the weights of `model` for the block, if possible, and yields whether they are packed."""
    packed = PackedWeights.pack(model)
    with packed.in_use() if packed else contextlib.nullcontext():
        yield packed is not None


def packed_bytes(model: nn.Module) -> int:
    """The memory of the packed copies of a model's linear layers."""
    return sum(
        module.weight.numel() * module.weight.element_size() for module in model.modules() if type(module) is nn.Linear
    )


def _packed_forward(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[..., torch.Tensor]:
    linear, forward = torch.ops.mkldnn._linear_pointwise, module.forward
    is_disabled = getattr(module, "disable_adapters", False)

    def packed_forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        is_switched = getattr(module, "disable_adapters", False) is not is_disabled
        if is_switched or args or kwargs or torch.is_grad_enabled() or x.dtype != torch.float32:
            output: torch.Tensor = forward(x, *args, **kwargs)
        else:
            output = linear(x, weight, bias, "none", [], "")
        return output

    return packed_forward


@torch.no_grad()
def _packed_layers(model: nn.Module) -> Iterator[tuple[nn.Module, torch.Tensor, torch.Tensor | None]]:
    inside: set[int] = set()  # layers whose weight is part of a packed LoRA layer
    reorder = torch.ops.mkldnn._reorder_linear_weight
    for module in model.modules():
        if "forward" in vars(module):  # replaced by somebody else
            inside |= {id(submodule) for submodule in module.modules()}
        if id(module) in inside:
            continue
        if type(module) is LoraLinear and _is_plain_lora(module):
            inside |= {id(submodule) for submodule in module.modules()}
            yield module, reorder(_merged_weight(module), BATCH_SIZE_HINT), _base_layer(module).bias
        elif type(module) is nn.Linear and _is_packable(module) and min(module.weight.shape) >= MIN_WIDTH:
            yield module, reorder(module.weight.detach(), BATCH_SIZE_HINT), module.bias


def _base_layer(layer: LoraLinear) -> nn.Linear:
    base: nn.Linear = layer.get_base_layer()
    return base


def _merged_weight(layer: LoraLinear) -> torch.Tensor:
    """The weight of the base with the active adapters: [out, in]."""
    weight = _base_layer(layer).weight.detach()
    if layer.disable_adapters or layer.merged:
        return weight
    for name in layer.active_adapters:
        if name in layer.lora_A:
            weight = weight + layer.get_delta_weight(name)
    return weight


def _is_plain_lora(layer: LoraLinear) -> bool:
    """Whether the layer computes a product with its base's weight plus those of its adapters, and nothing else."""
    base = _base_layer(layer)
    has_bias = any(matrices[name].bias is not None for matrices in (layer.lora_A, layer.lora_B) for name in matrices)
    has_hooks = any(
        module._forward_hooks or module._forward_pre_hooks for module in layer.modules() if module is not layer
    )
    is_plain = not (layer.lora_variant or layer.fan_in_fan_out or has_bias or has_hooks)
    return is_plain and type(base) is nn.Linear and _is_packable(base)


def _is_packable(layer: nn.Linear) -> bool:
    weight = layer.weight
    return type(weight) is nn.Parameter and weight.device.type == "cpu" and weight.dtype == torch.float32


def _has_operators() -> bool:
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


def _fits_memory(model: nn.Module) -> bool:
    return packed_bytes(model) < MEMORY_FRACTION * free_memory(torch.device("cpu"))
