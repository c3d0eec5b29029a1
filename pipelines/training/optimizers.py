"""Ludwig's optimizers, adapted to the installed packages and checked against this machine."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ludwig.modules.optimization_modules import _create_loraplus_param_groups as loraplus_groups
from ludwig.modules.optimization_modules import get_optimizer_class_and_kwargs as ludwig_class_and_kwargs

from pipelines.errors import MachineError

BITSANDBYTES_DEVICES = {"cuda", "xpu", "cpu"}
"""The device types for which bitsandbytes has kernels of its optimizers."""


def create_optimizer(model: torch.nn.Module, config: Any, learning_rate: float) -> torch.optim.Optimizer:
    """Creates the optimizer of a Ludwig model. `config` is Ludwig's config of an optimizer.

    Ludwig's function requires a GPU for 8-bit and paged optimizers, which bitsandbytes also has for the CPU.
    Raises MachineError if bitsandbytes has no kernels for the device of the model.
    """
    optimizer_class, kwargs = optimizer_class_and_kwargs(config, learning_rate)
    device = next(model.parameters()).device.type
    is_from_bitsandbytes = optimizer_class.__module__.startswith("bitsandbytes")
    if is_from_bitsandbytes and device not in BITSANDBYTES_DEVICES:
        raise MachineError(
            f"trainer.optimizer.type: {config.type}: bitsandbytes has no optimizers for the device {device}; write "
            "type: adamw"
        )
    loraplus_ratio = getattr(getattr(getattr(model, "config_obj", None), "adapter", None), "loraplus_lr_ratio", None)
    parameters = loraplus_groups(model, kwargs, loraplus_ratio) if loraplus_ratio else model.parameters()
    optimizer: torch.optim.Optimizer = optimizer_class(parameters, **kwargs)
    if is_from_bitsandbytes:
        _keep_embedding_states_in_fp32(optimizer, model)
    return optimizer


def optimizer_class_and_kwargs(config: Any, learning_rate: float) -> tuple[Any, dict[str, Any]]:
    """Returns an optimizer's class and arguments, without those that the class does not accept.

    Ludwig passes arguments that current versions of bitsandbytes have removed.
    """
    optimizer_class, kwargs = ludwig_class_and_kwargs(config, learning_rate)
    accepted = inspect.signature(optimizer_class).parameters
    return optimizer_class, {name: value for name, value in kwargs.items() if name in accepted}


def _keep_embedding_states_in_fp32(optimizer: Any, model: torch.nn.Module) -> None:
    """Creates the states of trained embeddings now, in fp32: with 8-bit states their training is unstable.

    Dettmers et al. 2022, arXiv:2110.02861, section 2.3. An embedding that is not trained stays as it is: Ludwig would
    replace it by one that is trained and no longer tied to the output layer. bitsandbytes' overrides are global and
    identify a parameter by its address, so each is removed as soon as the state exists.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    overrides: dict[int, Any] = optimizer.mng.pid2config
    for group_index, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            if id(parameter) in embeddings and parameter.requires_grad:
                overrides[id(parameter)] = {"optim_bits": 32}
                optimizer.init_state(group, parameter, group_index, index)
                del overrides[id(parameter)]


def load_optimizer_state(optimizer: Any, state: Mapping[str, Any]) -> None:
    """Loads what `optimizer.state_dict()` has returned, with its tensors on the CPU.

    bitsandbytes would load the states of a paged optimizer into memory of the device. Here they are paged again.
    """
    if not getattr(optimizer, "is_paged", False):
        optimizer.load_state_dict(state)
        return
    optimizer.load_state_dict(state, move_to_device=False)
    for parameter, name, value in _state_tensors(optimizer):
        if name in ("state1", "state2"):
            optimizer.state[parameter][name] = optimizer.get_state_buffer(parameter, dtype=value.dtype).copy_(value)
        else:
            optimizer.state[parameter][name] = value.to(parameter.device)


def _state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.Tensor, str, torch.Tensor]]:
    for parameter, values in optimizer.state.items():
        for name, value in list(values.items()):
            if isinstance(value, torch.Tensor):
                yield parameter, name, value


FUSED_OPTIMIZERS = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""The optimizers of which torch has a version with one kernel for many parameters on a GPU. Adagrad's refuses CUDA."""
FUSED_DEVICES = {"cuda"}
"""The device types on which it is used. On a CPU torch's default stays: results are bitwise those of earlier runs."""


def use_fused_step(optimizer: torch.optim.Optimizer) -> None:
    """Makes one of torch's optimizers update its parameters with fused kernels if they are on a GPU."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    is_on_gpu = all(parameter.device.type in FUSED_DEVICES for parameter in trained)
    if type(optimizer) in FUSED_OPTIMIZERS and is_on_gpu and all(map(torch.is_floating_point, trained)):
        for group in optimizer.param_groups:
            group |= {"fused": True, "foreach": False}
