"""Completions that a run has stored, for a comparison of its model with another one."""

from __future__ import annotations

from pathlib import Path

from pipelines.storage.records import CompletionRecord, FewShotTask, read_records, write_records
from pipelines.storage.run_folder import Run


def copy_few_shot(run: Run, folder: Path) -> None:
    """Copies the completions of the base of `run` after examples, for the tasks of which it has every compared row."""
    if not run.path("few_shot", "completions.jsonl").is_file():
        return
    compared = read_records(folder / "base" / "completions.jsonl", CompletionRecord)
    records = {
        (record.task, record.prompt, record.reference): record
        for record in read_records(run.path("few_shot", "completions.jsonl"), CompletionRecord)
    }
    keys = [(record.task, record.prompt, record.reference) for record in compared]
    missing = {key[0] for key in keys if key not in records}
    tasks = [
        task
        for task in read_records(run.path("few_shot", "tasks.jsonl"), FewShotTask)
        if task.has_prompts and task.task not in missing and any(key[0] == task.task for key in keys)
    ]
    names = {task.task for task in tasks}
    write_records(folder / "few_shot" / "tasks.jsonl", tasks)
    copied = [
        records[key].model_copy(update={"row": record.row})
        for key, record in zip(keys, compared, strict=True)
        if record.task in names
    ]
    write_records(folder / "few_shot" / "completions.jsonl", copied)
