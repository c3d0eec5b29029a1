"""Importance files: what was measured once for a model and a text serves every later run on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pipelines.errors import RunError
from pipelines.forgetting.penalty import KroneckerFactors
from pipelines.storage.files import write_tensors

FORMAT = "2"
OUTPUT, INPUT = "/output", "/input"

Importance = Mapping[str, torch.Tensor] | Mapping[str, KroneckerFactors]


def save_importance(path: Path, importance: Importance, model: str) -> None:
    """`model`: the fingerprint of the weights that it was measured at. The file appears when it is whole."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in importance.items():
        if isinstance(value, KroneckerFactors):
            tensors |= {name + OUTPUT: value.output, name + INPUT: value.input}
        else:
            tensors[name] = value
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, whole, {"format": FORMAT, "model": model})


def load_importance(path: Path, model: str) -> Importance:
    """Raises RunError for a file that is no importance file, or one of another model."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping, has no iterator
    except (OSError, SafetensorError):
        raise RunError(f"{path}: is no importance file, or not a whole one; delete it and run the job again") from None
    if metadata.get("format") != FORMAT:
        raise RunError(f"{path}: is an importance file of another alfine; delete it and run the job again")
    if metadata.get("model") != model:
        raise RunError(
            f"{path}: was measured on another model ({metadata.get('model')}, this one is {model}); leave it out"
        )
    names = [name.removesuffix(OUTPUT) for name in tensors if name.endswith(OUTPUT)]
    if names:
        return {name: KroneckerFactors(tensors[name + OUTPUT], tensors[name + INPUT]) for name in names}
    return tensors


def load_or_compute(path: Path, model: str, measure: Callable[[], Importance]) -> Importance:
    """The file's importance, measured and written first where it is not there yet."""
    if not path.exists():
        save_importance(path, measure(), model)
    return load_importance(path, model)
