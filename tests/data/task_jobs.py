"""Jobs with a single task over given rows."""

import json

from pipelines.config.job import load_job


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def make_job(tmp_path, rows, **pipeline):
    data = write(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    task = {"data": str(data), "prompt": "{q}", "completion": "{a}", "metric": "exact_match"}
    config = {"base_model": "smollm2-135m-instruct", "pipeline": {"tasks": {"t": task}, **pipeline}}
    return load_job(write(tmp_path, "job.yaml", json.dumps(config)))


def task_job(tmp_path, rows, **task):
    """A job whose only task has these settings as well."""
    write(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "data": str(tmp_path / "rows.jsonl"),
        "prompt": "{q}",
        "completion": "{a}",
        "metric": "exact_match",
        **task,
    }
    config = {"base_model": "smollm2-135m-instruct", "pipeline": {"tasks": {"t": settings}}}
    return load_job(write(tmp_path, "job.yaml", json.dumps(config)))
