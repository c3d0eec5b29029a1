"""Full fine-tuning with weights in half precision on the GPU, and the optimizer in main memory.

The optimizer has an fp32 copy of each weight (the master weight of Micikevicius et al. 2018, arXiv:1710.03740) and its
states on the CPU, and updates them there (ZeRO-Offload, Ren et al. 2021, arXiv:2101.06840). On the GPU remain 4 bytes a
weight, for the weight and its gradient, instead of 16 with AdamW in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pipelines.errors import ConfigError, MachineError
from pipelines.modeling.adapters import trainable_parameters
from pipelines.modeling.memory import free_memory, gigabytes
from pipelines.storage.environment import free_main_memory
from pipelines.training.activation_memory import optimizer_state_bytes

KEY = "pipeline.hardware.offload_optimizer"
FREE_FOR_ACTIVATIONS = 10**9
"""The least memory in bytes that a step needs beside weights, gradients and the optimizer's states."""


class MasterWeights:
    """The fp32 copies as a part of checkpoints: the weights in half precision do not determine them."""

    name = "master_weights"

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors

    def state_dict(self) -> dict[str, Any]:
        return {str(index): tensor for index, tensor in enumerate(self.tensors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for index, tensor in enumerate(self.tensors):
            tensor.detach().copy_(state[str(index)])


class OffloadedOptimizer(torch.optim.Optimizer):
    """One of torch's optimizers whose weights and states are in main memory.

    `step` updates one weight after the other, so that only one gradient at a time is copied. That is the same step for
    every optimizer that treats each weight by itself, as those of torch do.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
        """Takes over `optimizer`, whose state must be empty, and casts its weights to `dtype` in place.

        Raises ConfigError for an optimizer that is not torch's own, and MachineError for fp16.
        """
        if dtype == torch.float16:
            raise MachineError(f"{KEY}: this GPU computes in fp16, and it needs bf16; use an adapter")
        if not type(optimizer).__module__.startswith("torch.optim"):
            raise ConfigError(
                f"{KEY}: {type(optimizer).__name__} is not one of torch's optimizers; write trainer.optimizer.type: "
                "adamw, or leave the key out"
            )
        self.optimizer = optimizer
        self.weights: list[torch.Tensor] = []
        masters = []
        for group in optimizer.param_groups:
            group_masters = []
            for weight in (weight for weight in group["params"] if weight.requires_grad):
                master = weight.detach().to("cpu", torch.float32, copy=True).requires_grad_()
                weight.data = weight.data.to(dtype)
                if weight in optimizer.state:  # Adagrad has states from the start
                    state = optimizer.state.pop(weight)
                    optimizer.state[master] = {
                        name: value.to("cpu") if isinstance(value, torch.Tensor) else value
                        for name, value in state.items()
                    }
                self.weights.append(weight)
                group_masters.append(master)
            group["params"] = group_masters
            masters += group_masters
        self.masters = MasterWeights(masters)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the optimizer, with the fp32 copies as weights."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.optimizer.defaults

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for weight, master in zip(self.weights, self.masters.tensors, strict=True):
            if weight.grad is not None:
                master.grad = weight.grad.to("cpu", torch.float32)
                self.optimizer.step()  # leaves out the weights without a gradient, that is, all others
                master.grad = None
                weight.copy_(master)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.weights:
            if set_to_none or weight.grad is None:
                weight.grad = None
            else:
                weight.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict)


def memory_of_training(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, offload: bool
) -> tuple[float, float]:
    """The bytes on the GPU and in main memory for weights, gradients and the optimizer's states, without activations.

    With `offload` a trained weight takes 2 bytes and its gradient 2 on the GPU, and 4 in main memory, as much as each
    of its states there.
    """
    trained = trainable_parameters(model)
    all_bytes = sum(parameter.nbytes for parameter in model.parameters())
    trained_bytes = sum(weight.nbytes for weight in trained)
    num_trained, states = sum(weight.numel() for weight in trained), optimizer_state_bytes(optimizer)
    if offload:
        return all_bytes - trained_bytes + 4 * num_trained, 4 * num_trained + states
    return all_bytes + trained_bytes + states, 0


def check_training_memory(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    offload: bool,
    gpu: float | None = None,
    main: float | None = None,
) -> None:
    """Raises MachineError if a training cannot fit into memory, with what it needs and the edit that makes it fit.

    `gpu` is the memory of the GPU that is free or has the model, `main` the free main memory, in bytes; None: measured.
    Nothing is checked on a CPU, which may swap.
    """
    device = next(model.parameters()).device
    if gpu is None:
        if device.type != "cuda":
            return
        gpu = free_memory(device) + sum(parameter.nbytes for parameter in model.parameters())
    main = free_main_memory() if main is None else main
    needs = {is_offloaded: memory_of_training(model, optimizer, offload=is_offloaded) for is_offloaded in (False, True)}

    def fits(needed: tuple[float, float]) -> bool:
        return needed[0] + FREE_FOR_ACTIVATIONS <= gpu and needed[1] <= main

    if fits(needs[offload]):
        return
    count = sum(weight.numel() for weight in trainable_parameters(model)) / 1e9
    offloaded = f"{gigabytes(needs[True][0])} on the GPU and {gigabytes(needs[True][1])} of main memory"
    what = f"training {count:.2f} billion weights"
    state = f"of {gigabytes(gpu)} on the GPU" + (f" and {gigabytes(main)} of main memory" if offload else "")
    if not offload and fits(needs[True]):
        raise MachineError(
            f"{what} in fp32 needs {gigabytes(needs[False][0])} for weights, gradients and the optimizer's states, "
            f"{state}; write {KEY}: true ({offloaded}), or use an adapter"
        )
    needed = offloaded if offload else gigabytes(needs[False][0])
    raise MachineError(
        f"{what} needs {needed} for weights, gradients and the optimizer's states, {state}; use an adapter, or a "
        "smaller base_model"
    )
