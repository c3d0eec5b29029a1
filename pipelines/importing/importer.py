"""The registry of importers, and the import of one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.config.other_tools import detect_tool
from pipelines.config.yaml_parser import read_yaml
from pipelines.errors import ConfigError, Problem
from pipelines.importing.data_options import DataOptions
from pipelines.importing.draft import JobDraft
from pipelines.registry import Registry


@dataclass(frozen=True)
class Importer:
    """How the configs of one tool become jobs.

    tool: the tool as `detect_tool` returns it, such as "an axolotl".
    convert: fills the draft from `draft.source`, and accounts for the keys that it knows. Raises ConfigError for a
        config that is no supervised fine-tuning on text.
    """

    tool: str
    convert: Callable[[JobDraft, DataOptions], None]


IMPORTERS: Registry[Importer] = Registry("pipelines.importing.tools")
"""Name of a tool → its importer."""


def import_file(path: Path, data: tuple[str, ...] = ()) -> JobDraft:
    """The job of another tool's config.

    data: the values of --data: the file of the only task, or TASK=FILE.
    Raises ConfigError for a file that is no YAML, is of no known tool, or cannot become a job.
    """
    document = read_yaml(path)
    if document.problems:
        raise ConfigError(document.problems)
    importer = _importer_of(path, detect_tool(document.value), "pipeline" in document.value)
    draft = JobDraft(document, importer.tool)
    options = DataOptions(data)
    importer.convert(draft, options)
    options.check_all_used(draft.task_names)
    draft.account_for_the_rest()
    return draft


def _importer_of(path: Path, tool: str | None, is_job: bool) -> Importer:
    if importer := next((importer for importer in IMPORTERS.values() if importer.tool == tool), None):
        return importer
    known = ", ".join(importer.tool.partition(" ")[2] for importer in IMPORTERS.values())
    if is_job:
        raise ConfigError(Problem("this is a job of alfine already; run: alfine check " + str(path), str(path)))
    if tool is not None:
        message = f"this is {tool} config; alfine import reads configs of {known}"
        raise ConfigError(Problem(f"{message}; alfine check FILE names its keys here", str(path)))
    raise ConfigError(Problem(f"no config of a known tool; alfine import reads configs of {known}", str(path)))
