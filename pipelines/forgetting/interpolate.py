"""Between base and tuned: how far to go, decided on general text after training. No training step is changed.

Wortsman et al. 2022, arXiv:2109.01903 (WiSE-FT); for LoRA a scale on the adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipelines.activity import doing
from pipelines.engine.model import attach_adapter, load_causal_lm
from pipelines.engine.packing import Rows, row_losses
from pipelines.forgetting.penalty import lora_pairs
from pipelines.forgetting_keys import Interpolate as Settings
from pipelines.runs import write_tensors

SCALES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


def largest_scale(settings: Settings, loss_at: Callable[[float], float]) -> tuple[float, list[tuple[float, float]]]:
    """The largest of SCALES whose loss on general text exceeds that at 0 by no more than the budget, and what was
    measured: [(scale, loss in nats per token)]. Found by halving: the loss is taken to grow where it is past the budget."""
    if settings.scale is not None:
        return settings.scale, []
    base = loss_at(0.0)
    measured = [(0.0, base)]

    def within(place: int) -> bool:
        measured.append((SCALES[place], loss_at(SCALES[place])))
        return measured[-1][1] - base <= settings.budget

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


def general_losses(base: Path, tuned: Path, text: Rows) -> Callable[[float], float]:
    """A function from a scale to the mean loss on `text`, in nats per token, with the weights loaded once."""
    base_model = load_causal_lm(base, frozen=True)
    model: torch.nn.Module = base_model
    if (tuned / "adapter_config.json").exists():
        model = attach_adapter(base_model, tuned)
        full = [(pair.up, pair.up.detach().clone()) for pair in lora_pairs(model)]

        def set_scale(scale: float) -> None:
            for weight, value in full:
                weight.data.copy_(value * scale)
    else:
        start = {name: value.detach().clone() for name, value in model.named_parameters()}
        end = dict(load_causal_lm(tuned, frozen=True).named_parameters())

        def set_scale(scale: float) -> None:
            for name, weight in model.named_parameters():
                weight.data.copy_(torch.lerp(start[name], end[name].detach(), scale))

    def loss_at(scale: float) -> float:
        set_scale(scale)
        with doing(f"the loss on general text at scale {scale:g}"):
            losses, lengths = list(row_losses(model, text)), text.supervised_lengths
        return sum(loss * length for loss, length in zip(losses, lengths, strict=True)) / sum(lengths)

    return loss_at


def scale_model(base: Path, tuned: Path, scale: float) -> None:
    """Rewrites the weights in `tuned` (an adapter, or a whole model) as base + scale · (tuned − base)."""
    if (tuned / "adapter_config.json").exists():
        # ΔW = s·B·A, and B alone is scaled: the scale is in the weights, whatever reads them.
        _rewrite(tuned / "adapter_model.safetensors", lambda name, value: value * scale if "lora_B" in name else value)
        return
    places = {name: path for path in sorted(base.glob("*.safetensors")) for name in _names(path)}

    def between(name: str, value: torch.Tensor) -> torch.Tensor:
        if name not in places or not value.is_floating_point():
            return value
        with safe_open(places[name], framework="pt") as file:
            start = file.get_tensor(name).to(value.dtype)
        return torch.lerp(start, value, scale)

    for path in sorted(tuned.glob("*.safetensors")):
        _rewrite(path, between)


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _rewrite(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    write_tensors(path, {name: change(name, value).contiguous() for name, value in load_file(path).items()}, metadata)


