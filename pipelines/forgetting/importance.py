"""Importance files: the importance of a model's weights for a text is measured once, by all processes, and cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from pipelines.errors import RunError
from pipelines.forgetting.penalty import FactoredImportance, Importance
from pipelines.modeling.process_group import SINGLE_PROCESS, ProcessGroup
from pipelines.storage.files import write_tensors

FORMAT = "2"
OUTPUT, INPUT = "/output", "/input"


def save_importance(path: Path, importance: Importance, model_fingerprint: str) -> None:
    """Writes an importance file atomically. `model_fingerprint` identifies the weights at which it was measured."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in importance.items():
        if isinstance(value, FactoredImportance):
            tensors |= {name + OUTPUT: value.output, name + INPUT: value.input}
        else:
            tensors[name] = value
    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, cpu_tensors, {"format": FORMAT, "model": model_fingerprint})


def load_importance(path: Path, model_fingerprint: str) -> Importance:
    """Reads an importance file.

    Raises RunError if it is damaged, of another version of alfine, or of another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping, has no iterator
    except (OSError, SafetensorError):
        raise RunError(
            f"{path} is not a valid importance file, or is truncated; delete it and run the job again"
        ) from None
    if metadata.get("format") != FORMAT:
        raise RunError(f"{path} is an importance file of another version of alfine; delete it and run the job again")
    if metadata.get("model") != model_fingerprint:
        raise RunError(
            f"{path} was measured on another model ({metadata.get('model')}, this one is {model_fingerprint}); "
            f"delete it and run the job again"
        )
    modules = [name.removesuffix(OUTPUT) for name in tensors if name.endswith(OUTPUT)]
    if modules:
        return {module: FactoredImportance(tensors[module + OUTPUT], tensors[module + INPUT]) for module in modules}
    return tensors


def compute_if_missing(
    path: Path, model_fingerprint: str, measure: Callable[[], Importance], process_group: ProcessGroup = SINGLE_PROCESS
) -> None:
    """Measures an importance and writes it to the file `path`, unless the file exists.

    All processes call it, and all call `measure` if one of them misses the file: each measures a part and has the
    whole result. Raises RunError if the importance is not finite: as a weight of a penalty it would make every loss
    NaN.
    """
    if not process_group.is_any(not path.exists()):
        return
    importance = measure()
    for name, value in importance.items():
        parts = (value.output, value.input) if isinstance(value, FactoredImportance) else (value,)
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise RunError(
                f"the importance of {name} is not finite, its gradients overflow; write "
                "pipeline.hardware: {dtype: fp32}, or use another strategy"
            )
    if not path.exists():  # a node may have a cache of its own; on a shared one the same is written again at worst
        save_importance(path, importance, model_fingerprint)


def load_or_compute(
    path: Path, model_fingerprint: str, measure: Callable[[], Importance], process_group: ProcessGroup = SINGLE_PROCESS
) -> Importance:
    """Returns the importance in the file `path`, which is measured and written first if the file is missing."""
    compute_if_missing(path, model_fingerprint, measure, process_group)
    return load_importance(path, model_fingerprint)
