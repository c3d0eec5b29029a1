"""`alfine export`: writes an export beside its folder, checks it, and gives it its name when it is complete."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.console.reporter import ConsoleReporter
from pipelines.errors import ConfigError
from pipelines.exporting.adapter import WEIGHTS, check_has_adapter, write_adapter
from pipelines.exporting.chat_template import ExportTemplate, export_template
from pipelines.exporting.folder import (
    EXPORT_FILE,
    check_disk,
    check_output,
    file_list,
    write_generation_config,
    write_tokenizer,
)
from pipelines.exporting.merged import BYTES, DTYPES, num_parameters, write_merged
from pipelines.exporting.source import DEFAULT_ROWS_PER_TASK, ExportSource, open_source
from pipelines.storage.environment import versions
from pipelines.storage.files import atomic_dir, os_errors_as_machine_error, write_json
from pipelines.version import __version__

FORMAT_VERSION = 1
"""The value of `format_version` in export.json."""
TARGETS = ("merged", "adapter")
OTHER_FILES = 100_000_000
"""Bytes for tokenizer, model card and configs, generously."""


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how it is checked.

    Attributes:
        target: one of TARGETS.
        dtype: the dtype of merged weights as in DTYPES; None for that of the base.
        rows_per_task: test rows per task that the export is asked; None for all, 0 for no check.
        force: whether an earlier export is replaced.
    """

    target: str = "merged"
    dtype: str | None = None
    rows_per_task: int | None = DEFAULT_ROWS_PER_TASK
    force: bool = False


def export(folder: Path, options: ExportOptions, output: Path | None, reporter: ConsoleReporter) -> dict[str, Any]:
    """Exports the run in `folder` to `output` (default: `export/TARGET` in the run). Returns what is in export.json.

    Raises RunError, ConfigError and MachineError.
    """
    if options.dtype is not None and options.target == "adapter":
        raise ConfigError("--dtype is for merged weights; an adapter keeps the dtype that it was trained in; remove it")
    output = output or folder / "export" / options.target
    check_output(output, options.force)
    source = open_source(folder)
    if options.target == "adapter":
        check_has_adapter(source)
    dtype = DTYPES[options.dtype] if options.dtype else source.base_dtype
    check_disk(output, _size(source, options.target, dtype))
    with os_errors_as_machine_error(output.parent), atomic_dir(output) as staging:
        output.parent.mkdir(parents=True, exist_ok=True)
        with reporter.status(f"Exporting {options.target}"):
            record = _write(source, options, dtype, staging)
        write_json(staging / EXPORT_FILE, record)
    for note in record["notes"]:
        reporter.note(note)
    return record


def _size(source: ExportSource, target: str, dtype: str) -> int:
    """About how many bytes the export takes."""
    if target == "adapter":
        return OTHER_FILES + (source.model / WEIGHTS).stat().st_size
    return OTHER_FILES + BYTES[dtype] * num_parameters(source.starting_model)


def _write(source: ExportSource, options: ExportOptions, dtype: str, folder: Path) -> dict[str, Any]:
    """Writes the files of the export. Returns the content of export.json."""
    notes = write_adapter(source, folder) if options.target == "adapter" else write_merged(source, folder, dtype)
    prompts = source.prompts(options.rows_per_task or DEFAULT_ROWS_PER_TASK)
    template: ExportTemplate = export_template(source, prompts)
    write_tokenizer(source, template, folder)
    write_generation_config(source, folder)
    base = source.base
    return {
        "format_version": FORMAT_VERSION,
        "target": options.target,
        "dtype": None if options.target == "adapter" else dtype,
        "run": source.run.name,
        "model": source.model_fingerprint,
        "base": {"name": base.name, "revision": base.revision, "on_hub": base.on_hub, "content": base.fingerprint},
        "chat_template_variables": dict(template.task_variables),
        "notes": [*notes, *template.notes],
        "versions": {"alfine": __version__, **versions()},
        "files": file_list(folder),
    }
