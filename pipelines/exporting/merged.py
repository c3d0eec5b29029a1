"""Export of the tuned model as one model with all its weights in safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipelines.errors import MachineError, RunError
from pipelines.exporting.source import ExportSource
from pipelines.modeling.model_folder import read_json
from pipelines.modeling.safetensors_header import num_parameters
from pipelines.registry import lazy_import
from pipelines.storage.files import write_json

if TYPE_CHECKING:
    import torch

    from pipelines.modeling import adapters, hardware, loading, memory
else:  # torch: 3 s that an error in the arguments does not need
    torch = lazy_import("torch")
    adapters, hardware, loading, memory = (
        lazy_import(f"pipelines.modeling.{name}") for name in ("adapters", "hardware", "loading", "memory")
    )

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The values of --dtype with torch's names."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PATH_KEYS = ("_name_or_path", "_model_name_or_path")
"""Keys of a config.json that may name a folder of the machine."""
DEQUANTIZED_NOTE = (
    "It was trained on quantized weights; those were dequantized, and the adapter merged into them: what was trained, "
    "not the original base with the adapter."
)


def write_merged(source: ExportSource, folder: Path, dtype: str) -> list[str]:
    """Writes config and weights to `folder` in `dtype` (torch's name). Returns notes for the user.

    The weights are merged in fp32 on the CPU and rounded once. Raises RunError for an adapter that cannot be merged,
    or whose merged model gives other logits, and MachineError if memory does not suffice.
    """
    base = source.starting_model if source.has_adapter else source.model
    _check_memory(num_parameters(base))
    with hardware.main_memory():
        if source.has_adapter:
            model = _merge(source)
        else:
            model = loading.load_causal_lm(source.model, allow_half_precision=False)
    model.to(getattr(torch, dtype))
    model.save_pretrained(folder)  # type: ignore[operator]
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {key: value for key, value in config.items() if key not in PATH_KEYS})
    return [DEQUANTIZED_NOTE] if source.job.quantization and source.has_adapter else []


def _check_memory(parameters: int) -> None:
    needed, available = 4 * parameters, psutil.virtual_memory().available
    if needed > available:
        raise MachineError(
            f"merging needs about {needed / 1e9:.1f} GB of main memory for weights in fp32; {available / 1e9:.1f} GB "
            "are available; export with --to adapter, or use a machine with more memory"
        )


def _merge(source: ExportSource) -> torch.nn.Module:
    quantization = source.job.quantization
    model: Any = loading.load_causal_lm(
        source.starting_model, allow_half_precision=quantization is not None, quantization=quantization
    )
    if quantization is not None:
        model = _dequantized(model)
    kind = str(read_json(source.model / "adapter_config.json").get("peft_type"))
    try:
        return adapters.merge_adapter(model, source.model)
    except (NotImplementedError, AttributeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise RunError(
            f"{source.run.folder}: PEFT cannot merge an adapter of type {kind} into this base ({reason}); export it "
            "with --to adapter"
        ) from None
    except RunError as error:
        raise RunError(f"{source.run.folder}: {error}; or export it with --to adapter") from None


def _dequantized(model: Any) -> Any:
    """The quantized model with plain fp32 weights of the same values."""
    model = model.dequantize().float()
    model.is_quantized = False
    model.hf_quantizer = None
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    return model
