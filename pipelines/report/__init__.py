"""The report of a run: its files are read and analyzed once, then written as HTML, Markdown and JSON.

Must not import torch, so that the report of a finished run is written in a second.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.errors import MachineError
from pipelines.report import html, markdown
from pipelines.report.analysis import analyse
from pipelines.report.results import Analysis

__all__ = ["Analysis", "analyse", "write_report"]


def write_report(folder: Path) -> Analysis:
    """Writes `report.html`, `report.md` and `report.json` into the run folder, and returns the analysis.

    The files are written under temporary names and renamed at the end, so a failure leaves the old report unchanged.
    The same run gives the same bytes.

    Raises RunError for a run that cannot be read, MachineError if the folder cannot be written.
    """
    # Not at the top: `python -m pipelines.report.json_report` would warn that the module has been imported already.
    from pipelines.report import json_report

    analysis = analyse(folder)
    texts = {
        "report.html": html.render(analysis),
        "report.md": markdown.render(analysis),
        "report.json": json_report.render(analysis),
    }
    staging = {folder / f".{name}.part": folder / name for name in texts}
    try:
        for path, text in zip(staging, texts.values(), strict=True):
            # A model can generate unpaired surrogates, which UTF-8 cannot encode: they become "?".
            path.write_bytes(text.encode("utf-8", errors="replace"))
        for path, final in staging.items():
            os.replace(path, final)
    except OSError as error:
        raise MachineError(f"{folder}: the report cannot be written: {error.strerror}") from error
    finally:
        for path in staging:
            path.unlink(missing_ok=True)
    return analysis
