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

from pipelines.modeling.equivalence import outputs_match, probe_logits
from pipelines.modeling.memory import attempt, free_memory, is_out_of_memory

MAX_MEAN_ERROR_HALF = 0.02
"""Mean difference of logits in half precision, relative to their standard deviation.

`tests.benchmarks.merging` on SmolLM2-135M with a trained LoRA of rank 16: 0.033 by merging into bf16, 0.037 by the
rounding of bf16 itself; 10 of 24 completions of 32 tokens changed. So this bound leaves most adapters on bf16 weights
unmerged, and allows those on fp16, which rounds to an eighth.
"""
MEMORY_FRACTION = 1 / 3
"""The largest part of the free memory that the merged copies may take."""


@contextlib.contextmanager
def adapter_merged(model: torch.nn.Module, merge: bool | None = None) -> Iterator[bool]:
    """Merges the adapter of `model` within the block, and yields whether it is merged.

    `merge`: None merges on a GPU if logits are nearly exact, True on every device also if they differ by the rounding
    of the weights (`outputs_match`), False never. Never merged are
    adapters other than LoRA (some keep further state), adapters of quantized models, models that several processes
    share, and adapters whose merged logits differ by more.
    """
    is_strict, is_wanted = merge is None, bool(merge)
    if merge is None:
        # The record is the model's own: a PEFT model would look up that of the model inside.
        is_on_gpu = next(model.parameters()).device.type in ("cuda", "mps")
        is_wanted = is_on_gpu and not vars(model).get("is_merging_rejected", False)
    if not is_wanted or not isinstance(model, PeftModel) or not _can_merge(model):
        yield False
        return
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    weights = {id(weight): weight for layer in layers for weight in layer.get_base_layer().parameters()}
    originals = [(weight, weight.data) for weight in weights.values()]

    def try_merge() -> bool:
        expected = probe_logits(model)
        for weight, original in originals:
            weight.data = original.clone()
        return _try_merge(model) and logits_agree(probe_logits(model), expected, model.dtype, is_strict)

    try:
        is_merged = attempt(try_merge) is True
        if not is_merged:  # also if memory does not suffice
            _restore(layers, originals)
            model.is_merging_rejected = True  # the trial is not repeated
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
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return bool(size < MEMORY_FRACTION * free_memory(weight.device))


def _try_merge(model: PeftModel) -> bool:
    """False for adapters that PEFT cannot merge."""
    try:
        model.merge_adapter()
    except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    return True


def _restore(layers: list[BaseTunerLayer], originals: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    for layer in layers:
        layer.merged_adapters = []
    for weight, original in originals:
        weight.data = original


def logits_agree(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, strict: bool) -> bool:
    """Whether two [tokens, vocabulary] of logits differ by rounding only.

    If `strict`, they must also have the same most likely tokens, and be closer in half precision.
    """
    is_fp32 = dtype == torch.float32
    if not strict or is_fp32:
        is_close = outputs_match(actual, expected, is_fp32)
    else:
        is_close = bool(((actual - expected).abs() / expected.std()).mean() < MAX_MEAN_ERROR_HALF)
    return is_close and (not strict or bool((actual.argmax(-1) == expected.argmax(-1)).all()))
