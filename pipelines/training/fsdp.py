"""FSDP for the frozen base: each process holds a shard of every layer, for a base that does not fit next to training.

torch's `fully_shard` gathers the weights of a layer while the layer is computed. The trained weights of the adapter
stay complete in every process, so steps, strategies and checkpoints are those of an unsharded base. Each forward pass
is a collective operation: all processes must make the same number of them, see `ProcessGroup.lockstep_batches`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pipelines.modeling.process_group import ProcessGroup


def shard_frozen_weights(model: torch.nn.Module, process_group: ProcessGroup) -> ProcessGroup:
    """Shards the frozen weights of each layer in place. Returns the process group with `lockstep` set.

    A single process keeps the complete model. `fully_shard` gathers weights of one dtype at a time: in a layer of
    several dtypes (a half-precision layer whose norms are fp32) the one with most bytes is sharded, the others stay
    complete.
    """
    if process_group.world_size == 1:
        return process_group
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (process_group.world_size,))
    for layer in _decoder_layers(model):
        fully_shard(layer, mesh=mesh, ignored_params=_complete_weights(layer))
    return replace(process_group, lockstep=True)


def _complete_weights(layer: torch.nn.Module) -> set[torch.nn.Parameter]:
    """Returns the weights that stay complete: those that are trained, and those of the rarer dtypes."""
    frozen_bytes: Counter[torch.dtype] = Counter()
    for weight in layer.parameters():
        if not weight.requires_grad:
            frozen_bytes[weight.dtype] += weight.nbytes
    sharded_dtype = max(frozen_bytes, key=lambda dtype: frozen_bytes[dtype], default=None)
    return {weight for weight in layer.parameters() if weight.requires_grad or weight.dtype != sharded_dtype}


def _decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """Returns the decoder layers: the ModuleList with the most parameters."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=lambda layers: sum(parameter.numel() for parameter in layers.parameters()))
