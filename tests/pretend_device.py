"""A device that exists only in tests: CPU numbers behind tensors that say they are on the device `pretend:0`.

It shows on any machine what would go wrong or take long on a GPU:

- an operation on tensors of two devices raises `MixedDevicesError`;
- a tensor in fp64, which Apple's GPUs do not have, raises `TypeError`;
- a copy with `non_blocking=True` of memory that is not pinned raises `RuntimeError`: on Apple's GPUs the memory may be
  freed before it is read (https://github.com/pytorch/pytorch/issues/189690), on CUDA the host waits after all;
- every kernel that a GPU would launch is counted, by operator;
- every time the host would wait for the device is counted, by operator and line of code: reading a value, an operation
  whose output shape depends on values, and a blocking copy in either direction.

Autocast casts the operators that CUDA's autocast casts. Attention (SDPA and the variable-length kernel) counts as one
kernel forward and one backward, as flash attention does. Times and memory mean nothing here.

`tests.pretend_kernels.install` changes torch for the whole process, so tests run it in a process of its own. torch's
own support for devices written in Python is the basis
(`torch.utils.backend_registration._setup_privateuseone_for_python_backend`).
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

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
KERNELS: dict[str, Callable[..., Any]] = {}
"""CPU versions of operators that have kernels for GPUs only, filled by `tests.pretend_kernels.install`."""
PINNED_STORAGES: set[int] = set()
"""The addresses of pinned memory."""


class PretendTensor(torch.Tensor):
    """A tensor on the device `pretend:0`. `cpu_tensor` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    cpu_tensor: torch.Tensor

    @staticmethod
    def __new__(cls, cpu_tensor: torch.Tensor) -> PretendTensor:
        if cpu_tensor.dtype == torch.float64:
            raise TypeError(f"the device has no fp64, at {place()}")
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

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            copy = PretendTensor(self.cpu_tensor.clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copy, self.requires_grad) if is_parameter else copy
        return memo[id(self)]

    @property
    def data(self) -> Any:
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, tensor: PretendTensor) -> None:
        torch.Tensor.data.__set__(self, tensor)  # type: ignore[attr-defined]
        self.cpu_tensor = tensor.cpu_tensor

    # These have no operator, so that no dispatch sees them.
    def tolist(self) -> Any:
        count_wait("tolist")
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
    outputs = KERNELS.get(str(func), func)(*cpu_args, **cpu_kwargs)
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
        raise MixedDevicesError(f"{name}: {shapes} on the CPU, {on_device_shapes} on the device, at {place()}")


def _count_waits(
    name: str,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    on_device: Sequence[torch.Tensor],
    is_output_on_device: bool,
) -> None:
    if on_device and (name in READS or name in VALUE_DEPENDENT_SHAPES):
        count_wait(name)
    if name in INDEXING and on_device:
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        if any(not isinstance(index, PretendTensor) or index.dtype == torch.bool for index in indices):
            count_wait(f"{name} with an index on the CPU or a mask")
    if name == "aten::repeat_interleave" and on_device and kwargs.get("output_size") is None:
        count_wait(name)
    if name not in ("aten::copy_", "aten::_to_copy"):
        return
    source = args[1] if name == "aten::copy_" else args[0]
    is_source_on_device = isinstance(source, PretendTensor)
    if is_source_on_device == is_output_on_device:
        return
    non_blocking = bool(kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))
    if is_output_on_device:
        COUNTS.copies[place()] += 1
        if non_blocking and source.untyped_storage().data_ptr() not in PINNED_STORAGES:
            raise RuntimeError(f"a copy that is not waited for, of memory that is not pinned, at {place()}")
    if not non_blocking:
        count_wait("copy to the device" if is_output_on_device else "copy to the host")


def count_wait(name: str) -> None:
    COUNTS.waits[name.removeprefix("aten::"), place()] += 1


def place() -> str:
    """The innermost line of alfine's or Ludwig's code that is being run, otherwise of any other package's."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    own = [frame for frame in frames if "/pipelines/" in frame.filename or "/ludwig/" in frame.filename]
    others = [frame for frame in frames if "/torch/" not in frame.filename]
    frame = (own or others or frames)[-1]
    return f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"


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
