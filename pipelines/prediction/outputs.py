"""The files that predictions are written to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.console.reporter import ConsoleReporter
from pipelines.errors import RunError
from pipelines.storage.files import os_errors_as_machine_error
from pipelines.storage.strict_json import dump


def check_output(output: Path, file: Path) -> None:
    """Raises RunError if predictions cannot or must not be written to `output`."""
    if output.is_dir():
        raise RunError(f"--output {output} is a folder; name a file")
    if output.resolve() == file.resolve():
        raise RunError(f"--output {output} is the input file, which would be overwritten; name another file")


def write_predictions(rows: Iterator[dict[str, Any]], output: Path, reporter: ConsoleReporter) -> None:
    """Writes JSON Lines to `output`.partial, which replaces `output` when it is complete.

    If the iterator raises, `output` stays as it was and the partial file keeps the rows so far.
    """
    partial = output.with_name(output.name + ".partial")
    count = 0
    with os_errors_as_machine_error(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as lines:
                for row in rows:
                    lines.write(dump(row) + "\n")
                    count += 1
                lines.flush()
                os.fsync(lines.fileno())
            partial.replace(output)
        except BaseException:
            if count:
                reporter.warn(f"{partial} has the predictions of the first {count} rows")
            else:
                partial.unlink(missing_ok=True)
            raise
