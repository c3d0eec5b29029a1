"""The report of a run: read the files once, then write HTML, Markdown and JSON from one analysis.

A leaf: it reads what the stages left in the run folder and is imported by the command line alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.errors import MachineError
from pipelines.report.analysis import analyse
from pipelines.report.results import Analysis

__all__ = ["Analysis", "analyse", "write_report"]


def write_report(run: Path) -> Analysis:
    """Write `report.html`, `report.md` and `report.json` into the run folder and return what they show.

    All three are made in memory, written beside their final names and then renamed, so a failure leaves
    the old report as it was. The same files in give the same bytes out.

    Raises RunError for a run that cannot be read, MachineError where the folder cannot be written.
    """
    from pipelines.report import html, markdown
    from pipelines.report import json_report as as_json

    analysis = analyse(run)
    texts = {
        "report.html": html.render(analysis),
        "report.md": markdown.render(analysis),
        "report.json": as_json.render(analysis),
    }
    drafts = {run / f".{name}.part": run / name for name in texts}
    try:
        for draft, text in zip(drafts, texts.values(), strict=True):
            # A model can write half of a surrogate pair, which UTF-8 cannot hold: it becomes "?".
            draft.write_bytes(text.encode("utf-8", errors="replace"))
        for draft, final in drafts.items():
            os.replace(draft, final)
    except OSError as error:
        raise MachineError(f"{run}: the report cannot be written: {error.strerror}") from error
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    return analysis
