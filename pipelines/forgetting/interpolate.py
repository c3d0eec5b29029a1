"""Between base and tuned: how far to go, decided on general text after training. No training step is changed.

Wortsman et al. 2022, arXiv:2109.01903 (WiSE-FT); for LoRA a scale on the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipelines.config.forgetting import Interpolate as Settings
from pipelines.console.activity import doing
from pipelines.errors import ConfigError, RunError
from pipelines.modeling.adapters import attach_adapter, model_source
from pipelines.modeling.equivalence import allclose, is_fp32, probe_logits, probe_losses
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import sequence_losses
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.storage.files import write_tensors

SCALES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


def bisect_scale(settings: Settings, loss_at: Callable[[float], float]) -> tuple[float, list[tuple[float, float]]]:
    """The largest of SCALES whose loss on general text exceeds that at 0 by no more than the budget, and what was
    measured: [(scale, loss in nats per token)]. Found by halving: the loss is taken to grow where it is past the budget."""
    if settings.scale is not None:
        return settings.scale, []
    base = loss_at(0.0)
    measured = [(0.0, base)]

    def within(place: int) -> bool:
        measured.append((SCALES[place], loss_at(SCALES[place])))
        return measured[-1][1] - base <= settings.max_loss_increase

    if within(0):
        return SCALES[0], measured
    beyond, good = 0, len(SCALES) - 1
    while good - beyond > 1:
        middle = (beyond + good) // 2
        if within(middle):
            good = middle
        else:
            beyond = middle
    return SCALES[good], measured


class Between:
    """Base and tuned model loaded once, to be set to any point between them."""

    def __init__(self, base: Path, tuned: Path, quantization: Any = None) -> None:
        """`tuned`: an adapter's folder, or a whole model's; `quantization`: the config's section of that name. Raises ConfigError
        for an adapter of which not all can be scaled, RunError where scale 0 is not the base."""
        self.base, self.tuned = base, tuned
        self.model: torch.nn.Module = load_causal_lm(base, frozen=True, quantization=quantization)
        expected = model_source(self.model).logits
        exact = is_fp32(self.model)
        self.ends: list[tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]] = []
        """Each weight that differs, its value in the base and in the tuned model."""
        if (tuned / "adapter_config.json").exists():
            _refuse_unscaled(tuned)
            self.model = attach_adapter(self.model, tuned)
            for name, weight in self.model.named_parameters():
                if _scales(name):
                    self.ends.append((weight, torch.zeros_like(weight), weight.detach().clone()))
        else:
            end = dict(load_causal_lm(tuned, frozen=True).named_parameters())
            for name, weight in self.model.named_parameters():
                self.ends.append((weight, weight.detach().clone(), end[name].detach()))
        self.set_scale(0.0)
        if not allclose(probe_logits(self.model), expected, exact):
            raise RunError(
                f"{tuned}: at scale 0 interpolate does not give the base; leave interpolate out of the strategy"
            )

    @torch.no_grad()
    def set_scale(self, scale: float) -> None:
        for weight, start, end in self.ends:
            weight.copy_(torch.lerp(start, end, scale))

    def general_loss(self, text: TokenSequences) -> Callable[[float], float]:
        """A function from a scale to the mean loss on `text`, in nats per token."""

        def loss_at(scale: float) -> float:
            self.set_scale(scale)
            with doing(f"the loss on general text at scale {scale:g}"):
                losses, lengths = list(sequence_losses(self.model, text)), text.supervised_lengths
            return sum(loss * length for loss, length in zip(losses, lengths, strict=True)) / sum(lengths)

        return loss_at

    def probe_losses(self, scale: float) -> list[float]:
        """Of each token of the trial rows, in nats."""
        self.set_scale(scale)
        return [float(loss) for loss in probe_losses(self.model)]

    def save(self, scale: float) -> None:
        """Rewrites the weights of the tuned model's folder as base + scale · (tuned − base)."""
        scale_model(self.base, self.tuned, scale)


def _scales(name: str) -> bool:
    """ΔW = s·B·A, and only B is scaled: the scale is in the weights, whatever reads them."""
    return "lora_B" in name or "lora_embedding_B" in name


def _refuse_unscaled(adapter: Path) -> None:
    for name in _names(adapter / "adapter_model.safetensors"):
        if not _scales(name) and "lora_A" not in name and "lora_embedding_A" not in name:
            what = name.removeprefix("base_model.model.")
            raise ConfigError(
                f"pipeline.forgetting.strategy: interpolate scales LoRA's matrices, and {what} is trained as well; take "
                f"replay+distill"
            )


def scale_model(base: Path, tuned: Path, scale: float) -> None:
    """Rewrites the weights in `tuned` (an adapter, or a whole model) as base + scale · (tuned − base)."""
    if (tuned / "adapter_config.json").exists():
        _rewrite(tuned / "adapter_model.safetensors", lambda name, value: value * scale if _scales(name) else value)
        return
    places = {name: path for path in sorted(base.glob("*.safetensors")) for name in _names(path)}

    def between(name: str, value: torch.Tensor) -> torch.Tensor:
        if not value.is_floating_point():
            return value
        there = _place(name, places)
        with safe_open(places[there], framework="pt") as file:
            start = file.get_tensor(there).to(value.dtype)
        return torch.lerp(start, value, scale)

    for path in sorted(tuned.glob("*.safetensors")):
        _rewrite(path, between)


def _place(name: str, places: Mapping[str, Path]) -> str:
    """The name that the base's files have for a weight: some leave out the first part (`transformer.`)."""
    if name in places:
        return name
    found = [place for place in places if name.endswith(f".{place}") or place.endswith(f".{name}")]
    if len(found) != 1:
        raise RunError(f"interpolate finds no weight {name} in the base's files; leave interpolate out of the strategy")
    return found[0]


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _rewrite(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    write_tensors(path, {name: change(name, value).contiguous() for name, value in load_file(path).items()}, metadata)
