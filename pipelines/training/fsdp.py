"""The frozen base shared out over the workers, for one that leaves a single GPU no room to train: each keeps a part of every
layer, and a layer's weights come together while it is at work (torch's FSDP).

The adapter's weights stay whole in every worker, so that steps, strategies and checkpoints are those of a base that is not
shared. What changes is that a pass is everyone's: all workers must make as many, see `ProcessGroup.lockstep_batches`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pipelines.modeling.process_group import ProcessGroup


def shard_base(model: torch.nn.Module, process_group: ProcessGroup) -> ProcessGroup:
    """Each layer's frozen weights become this worker's part of them. Returns the workers, bound to each other's passes."""
    if process_group.world_size == 1:
        return process_group
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (process_group.world_size,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, ignored_params={weight for weight in layer.parameters() if weight.requires_grad})
    return replace(process_group, lockstep=True)


def _layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The model's decoder layers: of its lists of modules the one with the most weights."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=lambda one: sum(weight.numel() for weight in one.parameters()))
