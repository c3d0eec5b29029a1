"""Stage `report`: writes report.html, report.md and report.json."""

from __future__ import annotations

from pipelines.report import write_report
from pipelines.stages.context import StageContext


def write_run_report(context: StageContext) -> None:
    """Compares the base and the tuned model, from the files that the other stages have written."""
    with context.reporter.status("Report"):
        write_report(context.run.folder)
