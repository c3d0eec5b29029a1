"""A model between base and tuned: base + scale · (tuned − base), in memory and in the files of a model folder.

Wortsman et al. 2022, arXiv:2109.01903 (WiSE-FT); under LoRA the scale is a factor on the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipelines.console.activity import track_activity
from pipelines.errors import ConfigError, RunError
from pipelines.modeling.adapters import attach_adapter, model_source
from pipelines.modeling.equivalence import is_fp32, outputs_match, probe_logits, probe_losses
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import sequence_mean_losses
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.storage.files import write_tensors


class InterpolatedModel:
    """The base model with weights that can be set to any point between base and tuned."""

    def __init__(self, base: Path, tuned: Path, quantization: Any = None) -> None:
        """`tuned` is the folder of an adapter or of a whole model; `quantization` is Ludwig's config of that name.

        Raises ConfigError for an adapter with a part that cannot be scaled, RunError if scale 0 is not the base.
        """
        self.base, self.tuned = base, tuned
        self.model: torch.nn.Module = load_causal_lm(base, allow_half_precision=True, quantization=quantization)
        base_logits = model_source(self.model).logits
        exact = is_fp32(self.model)
        self.endpoints: list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]] = []
        """Every parameter that differs, with its value in the base and in the tuned model."""
        if (tuned / "adapter_config.json").exists():
            _check_adapter_scales(tuned)
            self.model = attach_adapter(self.model, tuned)
            for name, weight in self.model.named_parameters():
                if _is_scaled(name):
                    self.endpoints.append((weight, torch.zeros_like(weight), weight.detach().clone()))
        else:
            tuned_weights = dict(load_causal_lm(tuned, allow_half_precision=True).named_parameters())
            for name, weight in self.model.named_parameters():
                self.endpoints.append((weight, weight.detach().clone(), tuned_weights[name].detach()))
        self.set_scale(0.0)
        if not outputs_match(probe_logits(self.model), base_logits, exact):
            raise RunError(
                f"{tuned}: at scale 0 interpolate does not give the base; leave interpolate out of the strategy"
            )

    @torch.no_grad()
    def set_scale(self, scale: float) -> None:
        for weight, base_value, tuned_value in self.endpoints:
            weight.copy_(torch.lerp(base_value, tuned_value, scale))

    def mean_loss(self, text: TokenSequences, scale: float) -> float:
        """Returns the mean loss on `text` at `scale`, in nats per token."""
        self.set_scale(scale)
        with track_activity(f"the loss on general text at scale {scale:g}"):
            losses, lengths = list(sequence_mean_losses(self.model, text)), text.supervised_lengths
        return sum(loss * length for loss, length in zip(losses, lengths, strict=True)) / sum(lengths)

    def probe_losses(self, scale: float) -> list[float]:
        """Returns the loss of each token of the probe batch at `scale`, in nats."""
        self.set_scale(scale)
        return [float(loss) for loss in probe_losses(self.model)]


def _is_scaled(name: str) -> bool:
    """ΔW = s·B·A, and only B is scaled: the scale is then part of the weights, whichever program loads them."""
    return "lora_B" in name or "lora_embedding_B" in name


def _check_adapter_scales(adapter: Path) -> None:
    """Raises ConfigError if the adapter has weights that are no matrices of LoRA."""
    for name in _tensor_names(adapter / "adapter_model.safetensors"):
        if not _is_scaled(name) and "lora_A" not in name and "lora_embedding_A" not in name:
            weight = name.removeprefix("base_model.model.")
            raise ConfigError(
                f"pipeline.forgetting.strategy: interpolate scales LoRA's matrices, and {weight} is trained as well; "
                f"use replay+distill"
            )


def scale_model(base: Path, tuned: Path, scale: float) -> None:
    """Rewrites the weights in `tuned` (an adapter, or a whole model) as base + scale · (tuned − base)."""
    if (tuned / "adapter_config.json").exists():
        _rewrite(tuned / "adapter_model.safetensors", lambda name, value: value * scale if _is_scaled(name) else value)
        return
    base_files = {name: path for path in sorted(base.glob("*.safetensors")) for name in _tensor_names(path)}

    def interpolate(name: str, value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        base_name = _name_in_base(name, base_files)
        with safe_open(base_files[base_name], framework="pt") as file:
            base_value = file.get_tensor(base_name).to(value.dtype)
        return torch.lerp(base_value, value, scale)

    for path in sorted(tuned.glob("*.safetensors")):
        _rewrite(path, interpolate)


def _name_in_base(name: str, base_files: Mapping[str, Path]) -> str:
    """Returns the name of a weight in the files of the base: some files leave out the first part (`transformer.`)."""
    if name in base_files:
        return name
    candidates = [
        base_name for base_name in base_files if name.endswith(f".{base_name}") or base_name.endswith(f".{name}")
    ]
    if len(candidates) != 1:
        raise RunError(f"interpolate finds no weight {name} in the base's files; leave interpolate out of the strategy")
    return candidates[0]


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _rewrite(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    write_tensors(path, {name: change(name, value).contiguous() for name, value in load_file(path).items()}, metadata)
