"""The folder of an export: where it may be written, and the files that every kind of export has."""

from __future__ import annotations

import hashlib
import shutil
import stat
from pathlib import Path
from typing import Any

from pipelines.errors import MachineError, RunError
from pipelines.exporting.chat_template import ExportTemplate
from pipelines.exporting.records import ExportedFile
from pipelines.exporting.source import ExportSource
from pipelines.storage.files import write_json
from pipelines.storage.records import prompts_for_reasoning

EXPORT_FILE = "export.json"
SAMPLING_KEYS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
"""Settings of sampling, which transformers refuses next to `do_sample: false`."""


def check_output(output: Path, force: bool) -> None:
    """Raises RunError if an export must not be written to `output`. With `force` an earlier export is replaced."""
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise RunError(f"{output} is not a folder; write another --output")
    if not any(output.iterdir()):
        return
    if not (output / EXPORT_FILE).is_file():
        raise RunError(f"{output} exists and is not an export, so it is not replaced; write another --output")
    if not force:
        raise RunError(f"{output} exists; add --force to replace it, or write another --output")


def check_disk(folder: Path, needed: int) -> None:
    """Raises MachineError if the disk of `folder` has no room for `needed` bytes."""
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise MachineError(
            f"{folder}: the export needs about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; "
            "free some space, or write --output on another disk"
        )


def write_tokenizer(source: ExportSource, template: ExportTemplate, folder: Path) -> None:
    """Writes the tokenizer with the chat template of the export."""
    tokenizer = source.prompt_format.tokenizer
    tokenizer.chat_template = template.sources
    tokenizer.save_pretrained(folder)


def generation_config(source: ExportSource) -> dict[str, Any]:
    """The settings of the run's completions, with its stop tokens: the contents of generation_config.json."""
    job, tokenizer = source.job, source.prompt_format.tokenizer
    settings = {key: value for key, value in job.generation.items() if value is not None}
    if not settings.get("do_sample"):
        settings = {key: value for key, value in settings.items() if key not in SAMPLING_KEYS}
    limits = [
        job.completion_limit(task, with_reasoning=prompts_for_reasoning(source.run.manifest, task))
        for task in job.pipeline.tasks
    ]
    stop_ids = source.prompt_format.stop_ids
    pad_token_id = tokenizer.pad_token_id
    return {
        "do_sample": False,
        **settings,
        "max_new_tokens": max(limits),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": stop_ids if len(stop_ids) > 1 else stop_ids[0],
        "pad_token_id": stop_ids[0] if pad_token_id is None else pad_token_id,
    }


def write_generation_config(source: ExportSource, folder: Path) -> None:
    write_json(folder / "generation_config.json", generation_config(source))


def make_readable(folder: Path) -> None:
    """Gives all files the permissions of new files: some libraries write them for their owner only."""
    probe = folder / ".permissions"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def file_list(folder: Path) -> list[ExportedFile]:
    """Name, size in bytes and SHA-256 of every file of an export but export.json itself."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != EXPORT_FILE:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            name = path.relative_to(folder).as_posix()
            files.append(ExportedFile(name=name, size=path.stat().st_size, sha256=sha256))
    return files
