"""Whole runs of alfine on the pretend device (`tests/pretend_device.py`): what has to be replaced around it.

The device stands in for one of MACHINES. The replaced parts are those that ask for CUDA, that move a model, and that read
or write a tensor's bytes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import ludwig.distributed.base
import ludwig.models.llm
import ludwig.trainers.trainer
import ludwig.utils.torch_utils
import peft.peft_model
import peft.tuners.tuners_utils
import torch
import transformers.modeling_utils

import pipelines.modeling.loading
import pipelines.modeling.mixed_precision
import pipelines.training.checkpoint
from pipelines.modeling import hardware
from pipelines.modeling.adapters import optimize_adapter
from pipelines.modeling.attention import SHARED, attention_candidates
from pipelines.modeling.device_copy import NON_BLOCKING_DEVICES
from pipelines.modeling.fused_lora import fuse_lora_layers
from pipelines.modeling.fused_norms import fuse_rms_norms
from pipelines.training.optimizers import FUSED_DEVICES
from tests.pretend_device import NAME, PretendMode, PretendTensor, move_to_device
from tests.pretend_kernels import install

DEVICE = f"{NAME}:0"


@dataclass(frozen=True)
class Machine:
    """What the code asks of a GPU.

    Attributes:
        dtype: of frozen weights and of products.
        is_cuda: whether copies from pinned memory are queued, and kernels for CUDA only are used.
        has_flash: whether there is the variable-length attention kernel, which needs compute capability 8.0.
    """

    dtype: torch.dtype
    is_cuda: bool
    has_flash: bool


MACHINES = {
    "a100": Machine(torch.bfloat16, is_cuda=True, has_flash=True),
    "t4": Machine(torch.float16, is_cuda=True, has_flash=False),
    "apple": Machine(torch.float32, is_cuda=False, has_flash=False),
}


def install_in_alfine(name: str = "a100") -> None:
    """Makes alfine, Ludwig, PEFT and safetensors use the device, for the rest of the process."""
    machine = MACHINES[name]
    install()
    if machine.is_cuda:
        NON_BLOCKING_DEVICES.add(NAME)
        FUSED_DEVICES.add(NAME)
        _replace_everywhere(optimize_adapter, fuse_lora_layers)
    policy = hardware.Hardware(torch.device(DEVICE), machine.dtype, reason="pretended")
    hardware.detect_hardware = lambda settings: replace(
        policy, attention=None if settings.attention == "auto" else settings.attention
    )
    hardware._current = policy
    _load_models_on_device(machine)
    _train_on_device()
    _read_and_write_tensors()


@contextlib.contextmanager
def pretend_device() -> Iterator[None]:
    """Runs the block on the device, in this thread."""
    torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(…, device="pretend") is a copy to the device
    with PretendMode():
        yield


def _load_models_on_device(machine: Machine) -> None:
    """Trained weights are fp32."""
    from_pretrained = pipelines.modeling.loading.AutoModelForCausalLM.from_pretrained
    load_causal_lm = pipelines.modeling.loading.load_causal_lm

    def load(folder: str | Path, *, allow_half_precision: bool, quantization: Any = None) -> Any:
        def on_device(*args: Any, **kwargs: Any) -> Any:
            kwargs["dtype"] = machine.dtype if allow_half_precision else torch.float32
            kwargs.pop("device_map", None)
            model, info = from_pretrained(*args, **kwargs)
            move_to_device(model)
            if machine.is_cuda:
                fuse_rms_norms(model)
            return model, info

        with mock.patch.object(pipelines.modeling.loading.AutoModelForCausalLM, "from_pretrained", on_device):
            return load_causal_lm(folder, allow_half_precision=allow_half_precision, quantization=quantization)

    _replace_everywhere(load_causal_lm, load)
    paths = ["varlen", "dense"] if machine.has_flash else ["dense"]
    _replace_everywhere(
        attention_candidates, lambda device, dtype, path=None: [SHARED[name] for name in ([path] if path else paths)]
    )


def _replace_everywhere(original: Any, replacement: Any) -> None:
    """Replaces a function in every module of alfine that has imported it."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines."):
            for attribute, value in list(vars(module).items()):
                if value is original:
                    setattr(module, attribute, replacement)


def _train_on_device() -> None:
    for module in (ludwig.trainers.trainer, ludwig.utils.torch_utils, ludwig.distributed.base):
        module.get_torch_device = lambda: NAME
    ludwig.models.llm.to_device = lambda model, device, config, current: (model, torch.device(DEVICE))
    ludwig.models.llm.LLM.metrics_to_device = lambda model, device: None

    def move_adapter(layer: Any, adapter_name: str, device: Any = None) -> None:
        for name in layer.adapter_layer_names + layer.other_param_names:
            adapters = getattr(layer, name, None)
            if isinstance(adapters, torch.nn.ModuleDict) and adapter_name in adapters:
                move_to_device(adapters[adapter_name])

    peft.tuners.tuners_utils.BaseTunerLayer._move_adapter_to_device_of_base_layer = move_adapter


def _values(tensors: Any) -> dict[str, torch.Tensor]:
    """Copies on the CPU, by name."""
    return {
        name: tensor.cpu_tensor.clone() if isinstance(tensor, PretendTensor) else tensor
        for name, tensor in tensors.items()
    }


def _read_and_write_tensors() -> None:
    """safetensors reads and writes the bytes of CPU tensors only."""
    load_file = pipelines.training.checkpoint.load_file

    def load_on_device(path: Any, device: Any = "cpu") -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors if str(device) == "cpu" else {name: tensor.to(DEVICE) for name, tensor in tensors.items()}

    pipelines.training.checkpoint.load_file = load_on_device
    adapter_weights, load_weights = peft.peft_model.get_peft_model_state_dict, peft.peft_model.load_peft_weights
    peft.peft_model.get_peft_model_state_dict = lambda *args, **kwargs: _values(adapter_weights(*args, **kwargs))
    peft.peft_model.load_peft_weights = lambda model_id, device=None, **kwargs: {
        name: tensor.to(DEVICE) for name, tensor in load_weights(model_id, device="cpu", **kwargs).items()
    }
    save_pretrained = transformers.modeling_utils.PreTrainedModel.save_pretrained

    def save(model: Any, *args: Any, **kwargs: Any) -> Any:
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        weights = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
        kwargs.setdefault("state_dict", _values(weights))
        return save_pretrained(model, *args, **kwargs)

    transformers.modeling_utils.PreTrainedModel.save_pretrained = save
