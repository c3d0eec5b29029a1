"""A device that exists only in tests: CPU numbers behind tensors that say they are on the device `pretend:0`.

It shows on any machine what would go wrong or take long on a GPU:

- an operation on tensors of two devices raises `MixedDevicesError`;
- every kernel that a GPU would launch is counted, by operator;
- every time the host would wait for the device is counted, by operator and line of code: reading a value, an operation
  whose output shape depends on values, and a blocking copy in either direction.

Autocast casts the operators that CUDA's autocast casts. Attention (SDPA and the variable-length kernel) counts as one
kernel forward and one backward, as flash attention does. Times and memory mean nothing here.

`install` changes torch for the whole process, so tests run it in a process of its own. torch's own support for devices
written in Python is the basis (`torch.utils.backend_registration._setup_privateuseone_for_python_backend`).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"

READS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::item"}
"""Operators that return a value to the host."""
VALUE_DEPENDENT_SHAPES = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_consecutive"}
"""Operators whose output shape depends on values, so that the host waits for it."""
MIXING_ALLOWED = {"aten::copy_", "aten::_to_copy", "aten::lift_fresh"}
"""Operators that take tensors of two devices. Indices on the CPU are allowed as well; they cost a copy and a wait."""
INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}
NO_KERNEL = {
    "aten::detach",
    "aten::empty",
    "aten::new_empty",
    "aten::empty_strided",
    "aten::new_empty_strided",
    "aten::empty_like",
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::record_stream",
}
"""Operators that launch nothing and are not views by their schema."""
HALF_PRECISION = ("linear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "mv", "addmv")
"""Operators that CUDA's autocast runs in half precision."""
FULL_PRECISION = (
    *("log_softmax.int", "softmax.int", "nll_loss", "cross_entropy_loss", "kl_div", "mse_loss", "prod"),
    *("pow.Tensor_Scalar", "rsqrt", "exp", "log", "log1p", "cumsum", "sum.dim_IntList", "sum", "norm.Scalar"),
)
"""Operators that CUDA's autocast runs in fp32."""


class MixedDevicesError(RuntimeError):
    """An operation got tensors of two devices."""


@dataclass
class Counts:
    """What the device has done since the last `clear`."""

    kernels: Counter[str] = field(default_factory=Counter)
    """Launches, by operator."""
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Times the host has waited, by operator and line of code."""
    copies: Counter[str] = field(default_factory=Counter)
    """Copies to the device, by line of code, whether or not the host waits."""

    def clear(self) -> None:
        for counter in (self.kernels, self.waits, self.copies):
            counter.clear()

    def totals(self) -> dict[str, int]:
        return {name: counter.total() for name, counter in vars(self).items()}


COUNTS = Counts()
_pinned_storages: set[int] = set()


class PretendTensor(torch.Tensor):
    """A tensor on the device `pretend:0`. `cpu_tensor` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    cpu_tensor: torch.Tensor

    @staticmethod
    def __new__(cls, cpu_tensor: torch.Tensor) -> PretendTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            cpu_tensor.shape,
            strides=cpu_tensor.stride(),
            storage_offset=cpu_tensor.storage_offset(),
            dtype=cpu_tensor.dtype,
            device=torch.device(NAME, 0),
        )
        wrapper.cpu_tensor = cpu_tensor
        return wrapper

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.cpu_tensor})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operator(func, args, kwargs or {})

    # These have no operator, so that no dispatch sees them.
    def tolist(self) -> Any:
        _count_wait("tolist")
        return self.cpu_tensor.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.cpu_tensor.untyped_storage()

    def data_ptr(self) -> int:
        return self.cpu_tensor.data_ptr()


class PretendMode(TorchDispatchMode):
    """Handles operators without a tensor of the device, such as `torch.zeros(…, device="pretend")`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run_operator(func, args, kwargs or {})


def run_operator(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs an operator of torch on the CPU values, counts it, and wraps its outputs if they are on the device."""
    name = func._schema.name
    if name == "prim::device":
        return torch.device(NAME, 0)
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
    _check_devices(name, on_device, on_cpu)
    target = kwargs.get("device")
    is_on_device = bool(on_device) if target is None else _is_pretend(target)
    if name == "aten::copy_":
        is_on_device = isinstance(args[0], PretendTensor)
    _count_waits(name, args, kwargs, on_device, is_on_device)
    values = dict(kwargs)
    if target is not None:
        values["device"] = torch.device("cpu")
    cpu_args, cpu_kwargs = tree_map(_cpu_value, (tuple(args), values))
    outputs = KERNELS.get(name, func)(*cpu_args, **cpu_kwargs)
    if not is_on_device:
        return outputs
    is_view = any(output.alias_info and not output.alias_info.is_write for output in func._schema.returns)
    if not is_view and name not in NO_KERNEL | READS:
        COUNTS.kernels[name.removeprefix("aten::")] += 1
    # An operator in place returns its argument, which must stay the same object.
    known = {id(tensor.cpu_tensor): tensor for tensor in on_device}
    return tree_map(lambda output: _on_device(output, known), outputs)


def _on_device(output: Any, known: Mapping[int, PretendTensor]) -> Any:
    """Wraps a tensor that is not in `known`, which has the wrappers by the ids of their values."""
    if not isinstance(output, torch.Tensor):
        return output
    return known[id(output)] if id(output) in known else PretendTensor(output)


def _cpu_value(leaf: Any) -> Any:
    return leaf.cpu_tensor if isinstance(leaf, PretendTensor) else leaf


def _is_pretend(device: Any) -> bool:
    return torch.device(device).type == NAME


def _check_devices(name: str, on_device: Sequence[torch.Tensor], on_cpu: Sequence[torch.Tensor]) -> None:
    """Raises MixedDevicesError. Numbers, which torch holds as CPU tensors without dimensions, go with every device."""
    shapes = [tuple(tensor.shape) for tensor in on_cpu if tensor.dim()]
    if on_device and shapes and name not in MIXING_ALLOWED | INDEXING:
        on_device_shapes = [tuple(tensor.shape) for tensor in on_device]
        raise MixedDevicesError(f"{name}: {shapes} on the CPU, {on_device_shapes} on the device, at {_place()}")


def _count_waits(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    on_device: Sequence[torch.Tensor],
    is_output_on_device: bool,
) -> None:
    if on_device and (name in READS or name in VALUE_DEPENDENT_SHAPES):
        _count_wait(name)
    if name in INDEXING and on_device:
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if any(not isinstance(index, PretendTensor) or index.dtype == torch.bool for index in indices):
            _count_wait(f"{name} with an index on the CPU or a mask")
    if name == "aten::repeat_interleave" and on_device and kwargs.get("output_size") is None:
        _count_wait(name)
    if name not in ("aten::copy_", "aten::_to_copy"):
        return
    source = args[1] if name == "aten::copy_" else args[0]
    is_source_on_device = isinstance(source, PretendTensor)
    if is_source_on_device == is_output_on_device:
        return
    non_blocking = bool(kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))
    if is_output_on_device:
        COUNTS.copies[_place()] += 1
        # Even with non_blocking=True the host waits for a copy from memory that is not pinned.
        non_blocking = non_blocking and source.untyped_storage().data_ptr() in _pinned_storages
    if not non_blocking:
        _count_wait("copy to the device" if is_output_on_device else "copy to the host")


def _count_wait(name: str) -> None:
    COUNTS.waits[name.removeprefix("aten::"), _place()] += 1


def _place() -> str:
    """The innermost line of alfine's or Ludwig's code that is being run, otherwise of any other package's."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    own = [frame for frame in frames if "/pipelines/" in frame.filename or "/ludwig/" in frame.filename]
    others = [frame for frame in frames if "/torch/" not in frame.filename]
    frame = (own or others or frames)[-1]
    return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"


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
        raise MixedDevicesError(f"attention of {on_device}, mask {type(attn_mask).__name__}, at {_place()}")
    if torch.is_autocast_enabled(NAME):
        dtype = torch.get_autocast_dtype(NAME)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"attention of {query.dtype}, {key.dtype}, {value.dtype}")
    mask = None if attn_mask is None else attn_mask.cpu_tensor

    def compute(*tensors: torch.Tensor) -> torch.Tensor:
        return _cpu_attention(*tensors, mask, **kwargs)

    return OneKernel.apply("attention", compute, query, key, value)


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


KERNELS: dict[str, Callable[..., Any]] = {
    "torch_attn::_varlen_attn": varlen_forward,
    "torch_attn::_varlen_attn_backward": varlen_backward,
}
"""CPU versions of operators that have kernels for GPUs only."""


# --- installation --------------------------------------------------------------------------------------------------


class _Backend(_DummyBackendModule):
    """What torch asks of a device's module (`torch.pretend`). The device has no random numbers of its own."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, *_: Any) -> None: ...

    def manual_seed(self, *_: Any) -> None: ...

    def is_bf16_supported(self, *_: Any, **__: Any) -> bool:
        return True

    def synchronize(self, *_: Any) -> None:
        _count_wait("synchronize")


_libraries: list[torch.library.Library] = []
"""The registrations of autocast, which end when these objects are deleted."""


def install() -> None:
    """Adds the device to torch, for the rest of the process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(…, device="pretend") is a copy to the device
    torch.inference_mode = torch.no_grad  # type: ignore[misc]  # inference tensors cannot be wrapped
    F.scaled_dot_product_attention = attention
    torch.Tensor.pin_memory = _pin_memory  # type: ignore[method-assign]
    torch.Tensor.is_pinned = _is_pinned  # type: ignore[method-assign]
    # torch's optimizers and its clipping take their one-kernel versions for tensors of these types.
    for types in (optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
        if PretendTensor not in types:
            types.append(PretendTensor)
    _install_autocast()


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    pinned = tensor.clone()
    _pinned_storages.add(pinned.untyped_storage().data_ptr())
    return pinned


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    return tensor.untyped_storage().data_ptr() in _pinned_storages


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


def move_to_device(module: torch.nn.Module) -> torch.nn.Module:
    """Replaces the module's parameters and buffers by copies on the device. `Module.to` keeps the parameters' type."""
    moved: dict[int, torch.nn.Parameter] = {}
    for submodule in module.modules():
        for name, parameter in submodule._parameters.items():
            if parameter is None or isinstance(parameter, PretendTensor):
                continue
            if id(parameter) not in moved:  # tied weights stay tied
                copy = PretendTensor(parameter.detach().clone())
                moved[id(parameter)] = torch.nn.Parameter(copy, requires_grad=parameter.requires_grad)
            submodule._parameters[name] = moved[id(parameter)]
        for name, buffer in submodule._buffers.items():
            if buffer is not None and not isinstance(buffer, PretendTensor):
                submodule._buffers[name] = PretendTensor(buffer.detach().clone())
    return module
