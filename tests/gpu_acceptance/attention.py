"""The machine, and every way to compute attention against the model's own, one row at a time in fp32."""

from __future__ import annotations

import contextlib
import math
import subprocess
from typing import Any

import numpy as np
import torch
from transformers import MistralConfig, Qwen2Config

from pipelines.modeling.attention import PACKED, SHARED, UNPACKED
from pipelines.modeling.hardware import current_hardware
from pipelines.modeling.packing import token_losses
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.storage.environment import machine
from tests.gpu_acceptance.models import random_model
from tests.gpu_acceptance.registry import Context, Measurements, at_least, at_most, check

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def short_rows(count: int = 16, seed: int = 0, prefix: int = 20, vocabulary: int = 256) -> TokenSequences:
    """Rows of 35 to 90 random tokens with a common prefix, of which the last 15 are supervised."""
    random = np.random.default_rng(seed)
    common = random.integers(5, vocabulary, prefix)
    lengths = random.integers(15, 70, count)
    ids = [np.concatenate([common, random.integers(5, vocabulary, length)]).astype(np.int32) for length in lengths]
    return TokenSequences.supervised_from(ids, [len(row) - 15 for row in ids])


def long_rows(count: int, length: int, seed: int = 0, vocabulary: int = 256) -> TokenSequences:
    """Rows of random tokens without a common prefix, of which the second half is supervised."""
    random = np.random.default_rng(seed)
    ids = [random.integers(5, vocabulary, length).astype(np.int32) for _ in range(count)]
    return TokenSequences.supervised_from(ids, [length // 2] * count)


def loss_and_gradients(model: Any, rows: TokenSequences) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss and its gradients in fp32."""
    model.zero_grad(set_to_none=True)
    loss = token_losses(model, rows).mean()
    loss.backward()
    gradients = {
        name: weight.grad.float().clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    return float(loss.detach().float()), gradients


def gradient_error(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """‖actual − expected‖ / ‖expected‖ over all parameters."""
    difference = sum(float((actual[name] - value).square().sum()) for name, value in expected.items())
    return math.sqrt(difference / sum(float(value.square().sum()) for value in expected.values()))


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return "unknown"


@check(1, 5, at_least("compute_capability", 8.0))
def environment(context: Context) -> Measurements:
    """The machine, its driver and the packages."""
    measurements: Measurements = {"torch": torch.__version__, **machine(), **current_hardware().describe()}
    if context.is_gpu:
        properties = torch.cuda.get_device_properties(0)
        free, total = torch.cuda.mem_get_info()
        measurements |= {
            "gpu": properties.name,
            "compute_capability": float(f"{properties.major}.{properties.minor}"),
            "free_gib": free / 2**30,
            "total_gib": total / 2**30,
            "driver": _driver_version(),
        }
    return measurements


@check(
    1,
    20,
    at_most("gradient_error_fp32", 1e-4, portable=True),
    at_most("gradient_error_bf16", 0.03),
    at_most("gradient_error_fp16", 0.01),
    at_most("loss_error_bf16", 2e-3),
    at_most("failures", 0, portable=True),
)
def attention_paths(context: Context) -> Measurements:
    """Loss and gradient of every attention path, relative to eager attention on single rows in fp32: the largest error
    by dtype over Qwen2 (grouped queries) and Mistral (sliding window), rows with and without shared prefixes."""
    size = (512, 1024, 2, 8) if context.is_gpu else (64, 96, 2, 4)
    values: dict[str, Any] = dict(
        zip(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), size, strict=True)
    )
    values |= {"num_key_value_heads": 2, "vocab_size": 1024, "tie_word_embeddings": True, "pad_token_id": None}
    configs = {"qwen2": Qwen2Config(**values), "mistral window": MistralConfig(**values, sliding_window=24)}
    # More than 1,024 tokens, from which the variable-length kernel is used.
    batches = {"shared": short_rows(28), "unshared": long_rows(9, 130)}
    if not context.is_gpu:
        batches = {"shared": short_rows(3)}
    errors: dict[str, float] = {}
    failures: list[str] = []
    for architecture, config in configs.items():
        reference = random_model(config, context.device, torch.float32, attn_implementation=UNPACKED)
        for batch, rows in batches.items():
            expected = loss_and_gradients(reference, rows)
            for dtype in DTYPES if context.is_gpu else ("fp32",):
                _compare_paths(f"{architecture} {batch}", dtype, config, reference, rows, expected, errors, failures)
    return {**errors, "failures": len(failures), "failed": failures[:8]}


def _compare_paths(
    case: str,
    dtype: str,
    config: Any,
    reference: Any,
    rows: TokenSequences,
    expected: tuple[float, dict[str, torch.Tensor]],
    errors: dict[str, float],
    failures: list[str],
) -> None:
    device = next(reference.parameters()).device.type
    model = random_model(config, device, DTYPES[dtype], attn_implementation=UNPACKED)
    model.load_state_dict(reference.state_dict())
    for path in (*(SHARED.values() if "shared" in case.split() else ()), *PACKED.values()):
        model.set_attn_implementation(path)
        try:
            loss, gradients = loss_and_gradients(model, rows)
        except (RuntimeError, ValueError, TypeError) as error:
            failures.append(f"{case} {dtype} {path}: {str(error)[:200]}")
            continue
        found = {
            f"loss_error_{dtype}": abs(loss - expected[0]) / expected[0],
            f"gradient_error_{dtype}": gradient_error(gradients, expected[1]),
        }
        for name, value in found.items():
            errors[name] = max(errors.get(name, 0.0), value)
