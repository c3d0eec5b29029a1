"""Export of the adapter without its base, which is named by its id on the Hub or by its content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipelines.errors import RunError
from pipelines.exporting.source import ExportSource
from pipelines.modeling.model_folder import read_json
from pipelines.storage.files import write_text

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_has_adapter(source: ExportSource) -> None:
    """Raises RunError if the run trained all weights, or if a file of its adapter is missing."""
    if not source.has_adapter:
        raise RunError(f"{source.run.folder} has no adapter, since it trained all weights; export it with --to merged")
    if not (source.model / WEIGHTS).is_file():
        raise RunError(f"{source.model} has no {WEIGHTS}; run the job again: {source.run.command}")


def write_adapter(source: ExportSource, folder: Path) -> list[str]:
    """Writes the adapter's config and weights to `folder`. Returns notes for the user."""
    folder.mkdir(parents=True)
    shutil.copyfile(source.model / WEIGHTS, folder / WEIGHTS)
    config = read_json(source.model / CONFIG)
    config |= {"base_model_name_or_path": source.base.name, "revision": source.base.revision}
    write_text(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    notes = []
    if not source.base.on_hub:
        notes.append(f"Its base is not on the Hub: {source.base.name}, content {source.base.fingerprint}.")
    if source.job.quantization:
        settings = ", ".join(f"{key}: {value}" for key, value in source.job.quantization.items())
        notes.append(f"It was trained on a quantized base ({settings}); load the base with the same quantization.")
    return notes
