"""The frozen base shared out over the workers, for one that leaves a single GPU no room to train: each keeps a part of every
layer, and a layer's weights come together while it is at work (torch's FSDP).

The adapter's weights stay whole in every worker, so that steps, strategies and checkpoints are those of a base that is not
shared. What changes is that a pass is everyone's: all workers must make as many, see `Workers.rounds`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pipelines.modeling.process_group import Workers


def shard_base(model: torch.nn.Module, workers: Workers) -> Workers:
    """Each layer's frozen weights become this worker's part of them. Returns the workers, bound to each other's passes."""
    if workers.count == 1:
        return workers
    device = next(model.parameters()).device.type
    mesh = init_device_mesh(device, (workers.count,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh, ignored_params={weight for weight in layer.parameters() if weight.requires_grad})
    return replace(workers, bound=True)


def _layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The model's decoder layers: of its lists of modules the one with the most weights."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=lambda one: sum(weight.numel() for weight in one.parameters()))
