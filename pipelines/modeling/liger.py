"""SwiGLU and rotary embeddings by Liger's Triton kernels, where the package `liger-kernel` is installed.

transformers computes them in several passes over the largest activations of a layer, which the memory bandwidth of a
GPU limits. The kernels take one pass each (https://github.com/linkedin/Liger-Kernel). A Triton kernel takes the host
longer to launch than one of torch's, so short passes stay as they are.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

MIN_TOKENS = 2048
"""Tokens from which a pass uses the kernels: with fewer, a GPU waits for the host."""
MAX_RELATIVE_ERROR = 2e-2
"""Of a kernel's output in half precision, relative to the largest element of transformers' output."""


@torch.no_grad()
def use_liger_kernels(model: torch.nn.Module) -> list[str]:
    """Replaces SwiGLU and rotary embeddings of `model`, a model on a GPU in half precision. Returns what it replaced.

    Each kernel is compared with transformers' computation first. The rotary embedding is a function of transformers'
    module for the architecture, so it is replaced for all its models; passes on a CPU, in fp32, or of fewer than
    MIN_TOKENS tokens call the function as it was.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        return []
    from liger_kernel.transformers.functional import liger_rope, liger_swiglu  # optional package

    replaced = []
    if any([_replace_mlp(module, liger_swiglu) for module in model.modules() if _is_gated_mlp(module)]):
        replaced.append("swiglu")
    modules = {type(module).__module__ for module in model.modules() if hasattr(module, "q_proj")}
    device, dtype = next((weight.device, weight.dtype) for weight in model.parameters())
    if any([_replace_rope(name, liger_rope, device, dtype) for name in modules]):
        replaced.append("rope")
    return replaced


def _is_gated_mlp(module: torch.nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))


def _replace_mlp(module: torch.nn.Module, swiglu: Callable[..., torch.Tensor]) -> bool:
    original = module.forward
    width: int = module.gate_proj.in_features  # type: ignore[assignment, union-attr]
    weight = next(module.parameters())
    rows = torch.randn(1, MIN_TOKENS, width, device=weight.device, dtype=weight.dtype)
    fused = partial(_swiglu_mlp, module, original, swiglu)
    if not _matches(lambda: fused(rows), original(rows)):
        return False
    module.forward = fused
    return True


def _swiglu_mlp(
    module: Any, original: Callable[..., torch.Tensor], swiglu: Callable[..., torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """The MLP's output [batch, tokens, width]."""
    if x.shape[:-1].numel() < MIN_TOKENS:
        return original(x)
    gate, up = module.gate_proj(x), module.up_proj(x)
    return torch.as_tensor(module.down_proj(swiglu(gate, up)))


def _replace_rope(name: str, rope: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> bool:
    """Replaces `apply_rotary_pos_emb` in transformers' module `name`."""
    module: Any = sys.modules[name]
    original = getattr(module, "apply_rotary_pos_emb", None)
    if original is None or isinstance(original, partial):
        return original is not None
    query, key = (torch.randn(1, heads, MIN_TOKENS, 64, device=device, dtype=dtype) for heads in (4, 2))
    angles = torch.rand(1, MIN_TOKENS, 32, device=device).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    try:
        expected = torch.cat(original(query, key, cos, sin), dim=1)
    except (TypeError, ValueError, RuntimeError):
        return False
    fused = partial(_rotary_embedding, original, rope)
    if not _matches(lambda: torch.cat(fused(query.clone(), key.clone(), cos, sin), dim=1), expected):
        return False
    module.apply_rotary_pos_emb = fused
    return True


def _rotary_embedding(
    original: Callable[..., Any],
    rope: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """query [batch, heads, tokens, head_dim] and key [batch, kv_heads, tokens, head_dim], rotated."""
    is_half = query.dtype in (torch.bfloat16, torch.float16) and key.dtype == query.dtype == cos.dtype
    if args or kwargs or not is_half or query.device.type == "cpu" or query.shape[0] * query.shape[2] < MIN_TOKENS:
        return original(query, key, cos, sin, *args, **kwargs)
    return rope(query, key, cos, sin)


def _matches(fused: Callable[[], torch.Tensor], expected: torch.Tensor) -> bool:
    try:
        actual = fused()
    except Exception as error:  # Triton needs a compiler on the machine and may fail in many ways
        logging.getLogger(__name__).info(f"no Liger kernels: {str(error).splitlines()[:1]}")
        return False
    error_size = (actual.float() - expected.float()).abs().max() / expected.float().abs().max()
    return bool(error_size < MAX_RELATIVE_ERROR)
