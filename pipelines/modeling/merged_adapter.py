"""An adapter merged into the weights for the duration of a block, on GPUs, where generation is faster without it.

Every adapted matrix costs two more products per generated token. Merging into weights in half precision rounds them, so
it is tried: the merged model must give the logits of the unmerged one. The weights are restored bitwise, since the base
model shares them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer

from pipelines.modeling.equivalence import MAX_RELATIVE_ERROR_FP32, probe_logits

MAX_MEAN_ERROR_HALF = 0.02
"""Mean difference of logits in half precision, relative to their standard deviation: about that of the rounding of
activations. Measured by `tests/benchmarks/merging.py`."""
MEMORY_FRACTION = 1 / 3
"""The largest part of the free memory that the merged copies may take."""


@contextlib.contextmanager
def adapter_merged(model: torch.nn.Module, merge: bool | None = None) -> Iterator[bool]:
    """Merges the adapter of `model` within the block, and yields whether it is merged.

    `merge`: False leaves the model as it is; True merges on every device; None merges on a GPU. Never merged are
    adapters other than LoRA (some keep further state), adapters of quantized models, models that several processes
    share, and adapters whose merged logits differ.
    """
    is_wanted = next(model.parameters()).device.type in ("cuda", "mps") if merge is None else merge
    if not is_wanted or not isinstance(model, PeftModel) or not _can_merge(model):
        yield False
        return
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    weights = {id(weight): weight for layer in layers for weight in layer.get_base_layer().parameters()}
    originals = [(weight, weight.data) for weight in weights.values()]
    is_merged = False
    try:
        expected = probe_logits(model)
        for weight, original in originals:
            weight.data = original.clone()
        is_merged = _try_merge(model) and logits_agree(probe_logits(model), expected, model.dtype)
        if not is_merged:
            _restore(layers, originals)
        yield is_merged
    finally:
        _restore(layers, originals)


def _can_merge(model: PeftModel) -> bool:
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    is_lora = all(config.peft_type == PeftType.LORA for config in model.peft_config.values())
    if is_distributed or getattr(model, "is_quantized", False) or not is_lora:
        return False
    weight = next(model.parameters())
    if weight.device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(weight.device)
    unused = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return bool(size < MEMORY_FRACTION * (free + unused))


def _try_merge(model: PeftModel) -> bool:
    """False for adapters that PEFT cannot merge."""
    try:
        model.merge_adapter()
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError):
        return False
    return True


def _restore(layers: list[BaseTunerLayer], originals: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    for layer in layers:
        layer.merged_adapters = []
    for weight, original in originals:
        weight.data = original


def logits_agree(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two [tokens, vocabulary] of logits have the same most likely tokens and differ by rounding only."""
    error = (actual - expected).abs() / expected.std()
    is_close = error.max() < MAX_RELATIVE_ERROR_FP32 if dtype == torch.float32 else error.mean() < MAX_MEAN_ERROR_HALF
    return bool(is_close) and bool((actual.argmax(-1) == expected.argmax(-1)).all())
