"""Whether the micro-batches of a training run as CUDA graphs."""

from __future__ import annotations

from functools import partial

import torch

from pipelines.modeling.adapters import trainable_parameters
from pipelines.modeling.cuda_graphs import MicroBatchGraphs
from pipelines.modeling.mixed_precision import autocast, autocast_dtype
from pipelines.modeling.packing import transformers_model
from pipelines.modeling.process_group import ProcessGroup


def training_graphs(model: torch.nn.Module, process_group: ProcessGroup) -> MicroBatchGraphs | None:
    """The graphs for an adapter training on one GPU in bf16.

    None elsewhere: quantized products and recomputed activations cannot be captured, fp16 scales the loss by a factor
    that changes, several processes reduce gradients while they are computed, and full fine-tuning trains the output
    layer.
    """
    device = next(model.parameters()).device
    inner = transformers_model(model)
    is_supported = (
        device.type == "cuda"
        and autocast_dtype(device) == torch.bfloat16
        and process_group.world_size == 1
        and inner is not model
        and not getattr(inner, "is_quantized", False)
        and not getattr(inner, "is_activation_checkpointing", False)
    )
    return MicroBatchGraphs(model, trainable_parameters(model), partial(autocast, device)) if is_supported else None
