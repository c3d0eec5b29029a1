"""`alfine export`: writes an export beside its folder, checks it, and gives it its name when it is complete."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.console.reporter import ConsoleReporter
from pipelines.errors import ConfigError
from pipelines.exporting.adapter import WEIGHTS, check_has_adapter, write_adapter
from pipelines.exporting.chat_template import ExportTemplate, export_template
from pipelines.exporting.folder import (
    EXPORT_FILE,
    check_disk,
    check_output,
    file_list,
    make_readable,
    write_generation_config,
    write_tokenizer,
)
from pipelines.exporting.gguf import CONVERTED, bits, require_llama_cpp, write_gguf
from pipelines.exporting.merged import BYTES, DTYPES, write_merged
from pipelines.exporting.model_card import write_model_card
from pipelines.exporting.ollama import modelfile
from pipelines.exporting.records import ExportedBase, ExportRecord
from pipelines.exporting.source import DEFAULT_ROWS_PER_TASK, EvaluatedPrompt, ExportSource, open_source
from pipelines.exporting.verification import Engine, check_export, llama_cpp_engine, transformers_engine
from pipelines.modeling.safetensors_header import num_parameters
from pipelines.report import analyse
from pipelines.storage.environment import versions
from pipelines.storage.files import atomic_dir, os_errors_as_machine_error, write_text
from pipelines.version import __version__

FORMAT_VERSION = 1
"""The value of `format_version` in export.json."""
GGUF_TARGETS = ("gguf", "ollama")
TARGETS = ("merged", "adapter", "gguf", "ollama")
DEFAULT_QUANTIZATION = "q8_0"
OTHER_FILES = 100_000_000
"""Bytes for tokenizer, model card and configs, generously."""


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how it is checked.

    Attributes:
        target: one of TARGETS.
        dtype: the dtype of merged weights as in DTYPES; None for that of the base.
        quantize: the type of the weights in a GGUF file, one of QUANTIZATIONS.
        rows_per_task: test rows per task that the export is asked; None for all, 0 for no check.
        force: whether an earlier export is replaced.
    """

    target: str = "merged"
    dtype: str | None = None
    quantize: str = DEFAULT_QUANTIZATION
    rows_per_task: int | None = DEFAULT_ROWS_PER_TASK
    force: bool = False


def export(folder: Path, options: ExportOptions, output: Path | None, reporter: ConsoleReporter) -> ExportRecord:
    """Exports the run in `folder` to `output` (default: `export/TARGET` in the run). Returns what is in export.json.

    Raises RunError, ConfigError and MachineError.
    """
    check_options(options)
    output = output or folder / "export" / options.target
    check_output(output, options.force)
    source = open_source(folder)
    if options.target == "adapter":
        check_has_adapter(source)
    dtype = DTYPES[options.dtype] if options.dtype else source.base_dtype
    check_disk(output, _size(source, options, dtype))
    with os_errors_as_machine_error(output.parent), atomic_dir(output) as staging:
        output.parent.mkdir(parents=True, exist_ok=True)
        record = _write(source, options, dtype, staging, reporter)
        write_text(staging / EXPORT_FILE, record.model_dump_json(indent=1) + "\n")
    for note in record.notes:
        reporter.note(note)
    return record


def check_options(options: ExportOptions) -> None:
    """Raises ConfigError for an option that the target does not have, MachineError for a package that it needs."""
    if options.dtype is not None and options.target != "merged":
        other = "its file is quantized by --quantize" if options.target in GGUF_TARGETS else "an adapter keeps its own"
        raise ConfigError(f"--dtype is for --to merged; {other}; remove it")
    if options.target not in GGUF_TARGETS:
        return
    if options.quantize not in CONVERTED:
        require_llama_cpp(f"which quantizes to {options.quantize}", "or write --quantize q8_0")
    if options.rows_per_task != 0:
        require_llama_cpp("which checks the file", "or write --check-rows 0")


def _size(source: ExportSource, options: ExportOptions, dtype: str) -> int:
    """About how many bytes the export takes while it is written."""
    if options.target == "adapter":
        return OTHER_FILES + (source.model / WEIGHTS).stat().st_size
    parameters = num_parameters(source.starting_model if source.has_adapter else source.model)
    if options.target == "merged":
        return OTHER_FILES + BYTES[dtype] * parameters
    # The merged model in fp32, for types of the quantizer a file in fp32, and the result.
    fp32_files = 1 if options.quantize in CONVERTED else 2
    return OTHER_FILES + int(parameters * (4 * fp32_files + bits(options.quantize) / 8))


def _write(
    source: ExportSource, options: ExportOptions, dtype: str, folder: Path, reporter: ConsoleReporter
) -> ExportRecord:
    """Writes the files of the export to `folder` and checks them. Returns the content of export.json."""
    prompts = source.prompts(options.rows_per_task if options.rows_per_task != 0 else DEFAULT_ROWS_PER_TASK)
    template = export_template(source, prompts)
    notes, engine = WRITERS[options.target](source, options, dtype, template, prompts, folder, reporter)
    check = None
    if options.rows_per_task != 0:
        check = check_export(source, engine, template, prompts, reporter)
    base = source.base
    record = ExportRecord(
        format_version=FORMAT_VERSION,
        target=options.target,
        dtype=_precision(options, dtype),
        run=source.run.name,
        model=source.model_fingerprint,
        base=ExportedBase(name=base.name, revision=base.revision, on_hub=base.on_hub, content=base.fingerprint),
        chat_template_variables={task: dict(values) for task, values in template.task_variables.items()},
        notes=[*notes, *template.notes],
        versions={"alfine": __version__, **versions()},
        check=check,
        files=file_list(folder),
    )
    with reporter.status("Writing the model card"):
        write_model_card(source, analyse(source.run.folder), record, folder)
    make_readable(folder)
    return record.model_copy(update={"files": file_list(folder)})


def _precision(options: ExportOptions, dtype: str) -> str | None:
    return {"merged": dtype, "adapter": None}.get(options.target, options.quantize)


def _write_folder(
    source: ExportSource,
    options: ExportOptions,
    dtype: str,
    template: ExportTemplate,
    prompts: list[EvaluatedPrompt],
    folder: Path,
    reporter: ConsoleReporter,
) -> tuple[list[str], Engine]:
    """Writes a folder for transformers: an adapter or a merged model. Returns notes and the engine of the check."""
    is_adapter = options.target == "adapter"
    with reporter.status("Exporting the adapter" if is_adapter else "Merging"):
        notes = write_adapter(source, folder) if is_adapter else write_merged(source, folder, dtype)
        write_tokenizer(source, template, folder)
        write_generation_config(source, folder)
    gc.collect()  # the merged model: PEFT's modules refer to each other
    return notes, transformers_engine(source, folder, None if is_adapter else dtype)


def _write_gguf(
    source: ExportSource,
    options: ExportOptions,
    dtype: str,
    template: ExportTemplate,
    prompts: list[EvaluatedPrompt],
    folder: Path,
    reporter: ConsoleReporter,
) -> tuple[list[str], Engine]:
    """Writes a GGUF file, and a Modelfile for Ollama. Returns notes and the engine of the check."""
    file = folder / f"{source.run.name}-{options.quantize}.gguf"
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        merged = Path(scratch) / "merged"
        with reporter.status("Merging"):
            notes = write_merged(source, merged, "float32")
            write_tokenizer(source, template, merged)
            write_generation_config(source, merged)
            gc.collect()  # the merged model: PEFT's modules refer to each other
        with reporter.status(f"Converting to GGUF, {options.quantize}"):
            notes += write_gguf(source, merged, prompts, file, options.quantize)
    if options.target == "ollama":
        text, more = modelfile(source, template, prompts, file.name)
        write_text(folder / "Modelfile", text)
        notes += more
    return notes, llama_cpp_engine(file, prompts, options.quantize)


WRITERS = {"merged": _write_folder, "adapter": _write_folder, "gguf": _write_gguf, "ollama": _write_gguf}
