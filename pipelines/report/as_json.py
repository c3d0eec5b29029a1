"""`report.json`: the whole analysis for programs. A change of its form raises `FORMAT_VERSION`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipelines.report.findings import headline, sentence

if TYPE_CHECKING:
    from pipelines.report.analysis import Analysis, TaskResult

FORMAT_VERSION = 1


def render(analysis: Analysis) -> str:
    """The analysis as indented JSON; percentages and points on a 0…100 scale, losses in nats per token."""
    manifest = analysis.manifest
    report = {
        "format_version": FORMAT_VERSION,
        "run": manifest.name,
        "base_model": manifest.base_model,
        "sides": analysis.sides,
        "digest": analysis.digest,
        "headline": headline(analysis),
        "gates": [asdict(gate) for gate in analysis.failed_first],
        "tasks": {name: _task(task) for name, task in analysis.tasks.items()},
        "examples": [asdict(example) for example in analysis.examples],
        "probes": [asdict(probe) for probe in analysis.probes],
        "training": analysis.training.model_dump() if analysis.training else None,
        "config": analysis.config,
        "data": {name: rows.model_dump() for name, rows in manifest.data.items()},
        "versions": manifest.versions,
        "hardware": manifest.hardware.model_dump(),
        "stages": {name: stage.model_dump() for name, stage in analysis.stages.items()},
        "command": manifest.command,
        "seed": manifest.seed,
        "generation": manifest.generation,
    }
    # YAML knows dates, JSON does not: `default=str` writes them as they look.
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _task(task: TaskResult) -> dict[str, Any]:
    fields = asdict(task)
    del fields["name"]
    unscored = {"base": fields.pop("unscored_base"), "tuned": fields.pop("unscored_tuned")}
    return fields | {
        "gained": task.better,
        "lost": task.worse,
        "unscored": unscored,
        "told_apart": task.told_apart,
        "verdict": task.verdict,
        "sentence": sentence(task),
    }
