"""Fixtures: a project with retention evals and general text of its own, and a job that continues from the first."""

import json
from pathlib import Path

import pytest

from pipelines.config.job import load_job
from pipelines.run import run_job
from pipelines.storage.run_folder import Run
from tests.jobs import QUIET

BUNDLED = Path("own")
EVALS = {
    "knowledge": {"kind": "multiple_choice", "data": "own/retention/choices.jsonl"},
    "text": {"kind": "text_nll", "data": "own/retention/passages.jsonl"},
    "answers": {"kind": "kl", "data": "own/retention/instructions.jsonl"},
}


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def project_with_evals(project, bundled_rows):
    """The project with retention evals of its own, and a few rows in place of the bundled general text."""
    for folder in ("retention", "general"):
        write_rows(BUNDLED / folder / "passages.jsonl", [{"text": f"{folder}: the inn at nine {n}"} for n in range(8)])
        write_rows(BUNDLED / folder / "instructions.jsonl", [{"instruction": f"{folder}: say {n}"} for n in range(6)])
    questions = [{"question": f"is {n} tea?", "choices": ["a gate", "tea", "ice"], "answer": n % 3} for n in range(9)]
    write_rows(BUNDLED / "retention" / "choices.jsonl", questions)
    config = json.loads(Path("job.yaml").read_text())
    config["pipeline"]["forgetting"] = {"strategy": "none", "evals": EVALS}
    Path("job.yaml").write_text(json.dumps(config))
    return project


@pytest.fixture
def bundled_rows(monkeypatch):
    for module in ("evaluation.retention", "forgetting.context", "sweep"):
        monkeypatch.setattr(f"pipelines.{module}.bundled_file", lambda name: BUNDLED / name)


def write_second_job(continue_from="runs/one", **forgetting):
    """Writes second.yaml: the second task of the project, starting from the model of an earlier run."""
    config = json.loads(Path("job.yaml").read_text())
    del config["pipeline"]["tasks"]["odd"]
    config["pipeline"]["continue_from"] = continue_from
    config["pipeline"]["forgetting"] |= forgetting
    Path("second.yaml").write_text(json.dumps(config))


def run_second_job(name="two", *overrides):
    run = Run(Path("runs") / name)
    run_job(load_job(Path("second.yaml"), overrides), run, f"alfine run second.yaml --name {name}", QUIET)
    return Run(Path("runs") / name)
