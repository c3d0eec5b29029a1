"""Imports of configs that tests write, in the style of each tool."""

from pathlib import Path

from pipelines.config.job import Job, job_from_document
from pipelines.config.messages import dotted
from pipelines.config.yaml_parser import parse_yaml
from pipelines.importing.draft import JobDraft
from pipelines.importing.importer import import_file
from pipelines.importing.yaml_writer import to_yaml


def imported(text: str, *data: str) -> tuple[JobDraft, Job]:
    """The draft that is made of a config's text, and the job that its YAML loads as. `data`: values of --data."""
    path = Path("config.yaml")
    path.write_text(text)
    draft = import_file(path, data)
    yaml_text = to_yaml(draft.config, draft.comments, [])
    return draft, job_from_document(parse_yaml(yaml_text, "job.yaml"), Path("job.yaml"))


def reasons(draft: JobDraft) -> dict[str, str]:
    """Dotted key of the source → why it was dropped."""
    return {dotted(path): reason for path, reason in draft.dropped.items()}


def changes(draft: JobDraft) -> dict[str, str]:
    """Dotted key of the source → what is different in the job."""
    return {dotted(path): message for path, message in draft.changed.items()}
