"""CUDA graphs and fused kernels against plain modules."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines.modeling.adapters import optimize_adapter, trainable_parameters
from pipelines.modeling.attention import attention_path
from pipelines.modeling.cuda_graphs import MicroBatchGraphs
from pipelines.modeling.fused_lora import FusedLoraLinear
from pipelines.modeling.liger import use_liger_kernels
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.mixed_precision import autocast
from pipelines.modeling.packing import token_losses
from tests.gpu_acceptance.attention import gradient_error, long_rows, short_rows
from tests.gpu_acceptance.models import ALL_MATRICES, saved_model
from tests.gpu_acceptance.registry import Context, Measurements, at_least, at_most, check


def with_lora(model: Any, rank: int = 8) -> Any:
    """The model with a LoRA whose matrices are random, not zero, and in fp32, in training mode."""
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=ALL_MATRICES, task_type="CAUSAL_LM"
    )
    model = get_peft_model(model.requires_grad_(False), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            std = 0.01 if "lora_B" in name else parameter.shape[-1] ** -0.5
            parameter.data = (std * torch.randn(parameter.shape, generator=generator)).to(parameter.device)
    return model.train()


def fused_model(folder: Path) -> Any:
    """The model as a training loads it, with an adapter."""
    model = with_lora(load_causal_lm(folder, allow_half_precision=True))
    optimize_adapter(model)
    return model


def plain_model(folder: Path, context: Context, dtype: torch.dtype) -> Any:
    """transformers' and PEFT's own modules, with eager attention on single rows."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return with_lora(model.to(context.device))


def gradients(model: Any, rows: Any, device: str, dtype: torch.dtype | None) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        loss = token_losses(model, rows).mean()
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    return float(loss.detach()), found


@check(
    1,
    12,
    at_least("graphs_captured", 1),
    at_least("graphs_enabled", 1, portable=True),
    at_most("loss_error", 2e-3, portable=True),
    at_most("gradient_error", 0.02, portable=True),
    at_most("replay_difference", 0.01, portable=True),
)
def cuda_graphs(context: Context) -> Measurements:
    """Micro-batches of short rows as CUDA graphs against the same pass without padding: the largest relative errors
    over batches before and after the capture, and the relative difference of two replays (0 is bitwise equal)."""
    model = fused_model(saved_model("small", context))
    weights = trainable_parameters(model)
    graphs = MicroBatchGraphs(model, weights, partial(autocast, torch.device(context.device)), capture=context.is_gpu)
    loss_errors, gradient_errors, not_padded = [0.0], [0.0], 0
    for seed in range(3):
        rows = short_rows(seed=seed)
        expected_loss, expected = gradients(model, rows, context.device, torch.bfloat16 if context.is_gpu else None)
        for _ in range(5):
            model.zero_grad(set_to_none=True)
            loss = graphs.backward(rows, 1 / rows.num_supervised_tokens)
            if loss is None:
                not_padded += 1
                continue
            actual = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
            loss_errors.append(abs(float(loss) - expected_loss) / expected_loss)
            gradient_errors.append(gradient_error(actual, expected))
    replays = []
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        graphs.backward(rows, 1 / rows.num_supervised_tokens)
        replays.append({str(i): weight.grad.clone() for i, weight in enumerate(weights) if weight.grad is not None})
    return {
        "graphs_captured": graphs.num_captured,
        "graphs_enabled": int(graphs.is_enabled),
        "passes_without_graph": not_padded,
        "loss_error": max(loss_errors),
        "gradient_error": max(gradient_errors),
        "replay_difference": gradient_error(*replays),
    }


@check(
    1,
    12,
    at_most("excess_loss_error", 2e-3, portable=True),
    at_most("excess_gradient_error", 0.01, portable=True),
    at_least("fused_lora_layers", 1),
    at_least("fused_norms", 1),
)
def fused_kernels(context: Context) -> Measurements:
    """Fused LoRA, RMSNorm, SwiGLU and rotary embeddings in bf16, on rows long enough for all of them: by how much the
    errors exceed those of the plain modules in bf16, both relative to the plain modules in fp32."""
    folder = saved_model("small", context)
    rows = long_rows(4, 640) if context.is_gpu else long_rows(2, 40)
    half = torch.bfloat16 if context.is_gpu else None
    expected_loss, expected = gradients(plain_model(folder, context, torch.float32), rows, context.device, None)
    plain = gradients(plain_model(folder, context, half or torch.float32), rows, context.device, half)
    model = fused_model(folder)
    fused = gradients(model, rows, context.device, half)
    errors = [
        (abs(loss - expected_loss) / expected_loss, gradient_error(found, expected)) for loss, found in (plain, fused)
    ]
    modules = list(model.modules())
    inner = model.get_base_model()
    return {
        "plain_loss_error": errors[0][0],
        "plain_gradient_error": errors[0][1],
        "excess_loss_error": errors[1][0] - errors[0][0],
        "excess_gradient_error": errors[1][1] - errors[0][1],
        "fused_lora_layers": sum(isinstance(module, FusedLoraLinear) for module in modules),
        "fused_norms": sum("RMSNorm" in type(module).__name__ and "forward" in vars(module) for module in modules),
        "liger": use_liger_kernels(inner) if context.is_gpu else [],
        "attention": attention_path(inner),
    }
