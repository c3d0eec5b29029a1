"""Attention, autocast and installation of the pretend device (`tests/pretend_device.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from tests.pretend_device import (
    COUNTS,
    KERNELS,
    NAME,
    PINNED_STORAGES,
    MixedDevicesError,
    PretendTensor,
    count_wait,
    place,
)

HALF_PRECISION = ("linear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "mv", "addmv")
"""Operators that CUDA's autocast runs in half precision."""
FULL_PRECISION = (
    *("log_softmax.int", "softmax.int", "nll_loss", "cross_entropy_loss", "kl_div", "mse_loss", "prod"),
    *("pow.Tensor_Scalar", "rsqrt", "exp", "log", "log1p", "cumsum", "sum.dim_IntList", "sum", "norm.Scalar"),
)
"""Operators that CUDA's autocast runs in fp32."""


# --- attention -----------------------------------------------------------------------------------------------------


class OneKernel(torch.autograd.Function):
    """A function of tensors on the device that counts as one kernel forward and one backward."""

    @staticmethod
    def forward(ctx: Any, name: str, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        inputs = [tensor.cpu_tensor.detach().requires_grad_() for tensor in tensors]
        with torch.enable_grad():
            output = function(*inputs)
        ctx.name, ctx.inputs, ctx.output = name, inputs, output
        COUNTS.kernels[name] += 1
        return PretendTensor(output.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        COUNTS.kernels[f"{ctx.name}_backward"] += 1
        input_gradients = torch.autograd.grad(ctx.output, ctx.inputs, gradients[0].cpu_tensor)
        return None, None, *map(PretendTensor, input_gradients)


_cpu_attention = F.scaled_dot_product_attention


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **kwargs: Any
) -> torch.Tensor:
    """`F.scaled_dot_product_attention`, for tensors on the device as one kernel."""
    on_device = [isinstance(tensor, PretendTensor) for tensor in (query, key, value)]
    if not any(on_device):
        return _cpu_attention(query, key, value, attn_mask, **kwargs)
    if not all(on_device) or (attn_mask is not None and not isinstance(attn_mask, PretendTensor)):
        raise MixedDevicesError(f"attention of {on_device}, mask {type(attn_mask).__name__}, at {place()}")
    if torch.is_autocast_enabled(NAME):
        dtype = torch.get_autocast_dtype(NAME)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"attention of {query.dtype}, {key.dtype}, {value.dtype}")
    mask = None if attn_mask is None else attn_mask.cpu_tensor

    def compute(*tensors: torch.Tensor) -> torch.Tensor:
        return _cpu_attention(*tensors, mask, **kwargs)

    return OneKernel.apply("attention", compute, query, key, value)


_cpu_rms_norm = F.rms_norm


def rms_norm(
    hidden: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    """`F.rms_norm`, for tensors on the device as one kernel."""
    if not isinstance(hidden, PretendTensor) or weight is None:
        return _cpu_rms_norm(hidden, shape, weight, eps)
    return OneKernel.apply("rms_norm", lambda x, w: _cpu_rms_norm(x, shape, w, eps), hidden, weight)


def _varlen_sequences(arguments: Sequence[Any]) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """For each sequence of variable-length attention its queries, its keys, and the mask [queries, keys]."""
    query_offsets, key_offsets, _, _, is_causal, _scale, window = arguments
    bounds = list(zip(query_offsets.tolist(), key_offsets.tolist(), strict=True))
    left, right = (-1, 0) if is_causal else (window or (-1, -1))
    for (query_start, key_start), (query_end, key_end) in zip(bounds, bounds[1:], strict=False):
        num_queries, num_keys = query_end - query_start, key_end - key_start
        # The last query and the last key have the same position.
        distance = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)[None, :]
        visible = torch.ones_like(distance, dtype=torch.bool)
        if right >= 0:
            visible &= distance >= -right
        if left >= 0:
            visible &= distance <= left
        yield slice(query_start, query_end), slice(key_start, key_end), visible


def _varlen_output(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, arguments: Sequence[Any]) -> Any:
    outputs = [
        _cpu_attention(
            query[queries].transpose(0, 1),
            key[keys].transpose(0, 1),
            value[keys].transpose(0, 1),
            mask,
            scale=arguments[5],
            enable_gqa=True,
        ).transpose(0, 1)
        for queries, keys, mask in _varlen_sequences(arguments)
    ]
    return torch.cat(outputs)


def varlen_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_offsets: torch.Tensor,
    key_offsets: torch.Tensor,
    max_queries: int,
    max_keys: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
) -> Any:
    """`torch_attn::_varlen_attn`: query [queries, heads, head_dim], key and value [keys, kv_heads, head_dim].

    As the flash kernel it takes half precision only. The second output (log-sum-exp) is not computed.
    """
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError("FlashAttention only supports fp16 and bf16")
    layout = (query_offsets, key_offsets, max_queries, max_keys, is_causal, scale, window_size)
    output = _varlen_output(query, key, value, layout)
    return output, torch.zeros(query.shape[1], query.shape[0]), torch.zeros(2, dtype=torch.uint64)


def varlen_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *arguments: Any
) -> tuple[torch.Tensor, ...]:
    """`torch_attn::_varlen_attn_backward`."""
    _, _, query_offsets, key_offsets, max_queries, max_keys, is_causal, _, scale, window = (*arguments, None, None)[:10]
    layout = (query_offsets, key_offsets, max_queries, max_keys, is_causal, scale, window)
    # Operators run below autograd; this computation needs it.
    included, nothing = torch._C._dispatch_tls_local_include_set(), torch._C.DispatchKeySet.from_raw_repr(0)
    with torch._C._ForceDispatchKeyGuard(included, nothing), torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        return torch.autograd.grad(_varlen_output(*inputs, layout), inputs, gradient)


# --- installation --------------------------------------------------------------------------------------------------


class _Backend(_DummyBackendModule):
    """What torch asks of a device's module (`torch.pretend`). The device has no random numbers of its own."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, *_: Any) -> None: ...

    def manual_seed(self, *_: Any) -> None: ...

    def empty_cache(self) -> None: ...

    def is_bf16_supported(self, *_: Any, **__: Any) -> bool:
        return True

    def synchronize(self, *_: Any) -> None:
        count_wait("synchronize")


_libraries: list[torch.library.Library] = []
"""The registrations of autocast, which end when these objects are deleted."""


def install() -> None:
    """Adds the device to torch, for the rest of the process."""
    KERNELS.update(
        {
            "torch_attn._varlen_attn.default": varlen_forward,
            "torch_attn._varlen_attn_backward.default": varlen_backward,
            "aten.mm.dtype": lambda left, right, dtype: left.to(dtype) @ right.to(dtype),
        }
    )
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    # Inference tensors cannot be wrapped. Functions that are decorated already call `clone`.
    torch.inference_mode.clone = lambda mode: torch.no_grad()  # type: ignore[assignment, return-value]
    torch.inference_mode = torch.no_grad  # type: ignore[misc]
    F.scaled_dot_product_attention = attention
    F.rms_norm = rms_norm
    torch.Tensor.pin_memory = _pin_memory  # type: ignore[method-assign]
    torch.Tensor.is_pinned = _is_pinned  # type: ignore[method-assign]
    # torch's optimizers and its clipping take their one-kernel versions for tensors of these types.
    for types in (optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
        if PretendTensor not in types:
            types.append(PretendTensor)
    _install_autocast()


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    pinned = tensor.clone()
    PINNED_STORAGES.add(pinned.untyped_storage().data_ptr())
    return pinned


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    return tensor.untyped_storage().data_ptr() in PINNED_STORAGES


def _install_autocast() -> None:
    fallback, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend((fallback, aten))
    fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    casts = [(name, None) for name in HALF_PRECISION] + [(name, torch.float32) for name in FULL_PRECISION]
    for full_name, dtype in casts:
        name, _, overload = full_name.partition(".")
        operator = getattr(getattr(torch.ops.aten, name), overload or "default")
        aten.impl(full_name, _with_inputs_cast(operator, dtype), "AutocastPrivateUse1")


def _with_inputs_cast(operator: Callable[..., Any], dtype: torch.dtype | None) -> Callable[..., Any]:
    """The operator on inputs of `dtype`; None stands for the dtype of the autocast."""

    def run(*args: Any, **kwargs: Any) -> Any:
        target = torch.get_autocast_dtype(NAME) if dtype is None else dtype

        def cast(leaf: Any) -> Any:
            is_cast = isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64
            return leaf.to(target) if is_cast and leaf.device.type == NAME else leaf

        without_autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(without_autocast):
            args, kwargs = tree_map(cast, (args, kwargs))
            return operator(*args, **kwargs)

    return run
