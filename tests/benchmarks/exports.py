"""The scores of a run's report, and of its exports asked the same test prompts by the programs that load them.

    python -m tests.benchmarks.exports runs/quickstart [--rows 32|all] [--quantize q8_0 ...]

The adapter is copied to another folder and loaded there by plain PEFT, with only the folder of the base given.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.exporting.chat_template import export_template
from pipelines.exporting.export import ExportOptions, export
from pipelines.exporting.records import ExportCheck
from pipelines.exporting.source import open_source
from pipelines.exporting.verification import check_export, transformers_engine


@dataclass(frozen=True)
class Row:
    """An export with its check and the seconds that both took."""

    name: str
    check: ExportCheck
    seconds: float


def measure(run: Path, folder: Path, rows: int | None, quantizations: list[str]) -> list[Row]:
    """Exports the run into `folder` and checks each export."""
    reporter = ConsoleReporter()
    targets = [("merged", None), ("adapter", None), *(("gguf", kind) for kind in quantizations)]
    source, measured = open_source(run), []
    for target, kind in targets:
        if target == "adapter" and not source.has_adapter:
            continue
        options = ExportOptions(target, quantize=kind or "q8_0", rows_per_task=rows)
        output = folder / f"{target}-{kind}" if kind else folder / target
        started = time.monotonic()
        record = export(run, options, output, reporter)
        measured.append(Row(f"{target} {record.dtype or ''}".strip(), record.check, time.monotonic() - started))
    if source.has_adapter:
        moved = folder / "somewhere" / "else"
        shutil.copytree(folder / "adapter", moved)
        shutil.rmtree(folder / "adapter")
        prompts = source.prompts(rows)
        started = time.monotonic()
        engine = transformers_engine(source, moved, None)
        check = check_export(source, engine, export_template(source, prompts), prompts, reporter)
        measured.append(Row("adapter moved, plain PEFT", check, time.monotonic() - started))
    return measured


def table(measured: list[Row]) -> str:
    """The rows as a Markdown table: scores of the run and of each export on the same rows."""
    tasks = list(measured[0].check.tasks)
    lines = [f"| model | {' | '.join(tasks)} | prompts equal | answers equal | first difference | tokens | seconds |"]
    lines.append("|---|" + "--:|" * (len(tasks) + 5))
    scores = " | ".join(f"{task.run:.1f}" for task in measured[0].check.tasks.values())
    lines.append(f"| run's report | {scores} | | | | | |")
    for row in measured:
        check = row.check
        scores = " | ".join(f"{task.export:.1f}" for task in check.tasks.values())
        first = "" if check.first_difference_median is None else f"{check.first_difference_median:g}"
        ties = f" + {check.ties} ties" if check.ties else ""
        lines.append(
            f"| {row.name} | {scores} | {check.equal_prompts} of {check.rows} | {check.equal_answers}{ties} of "
            f"{check.rows} | {first} | {check.token_agreement:.1f} % | {row.seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", default="32", help="test rows per task, or all")
    parser.add_argument("--quantize", nargs="*", default=["f32", "q8_0", "q4_k_m"])
    parser.add_argument("--output", type=Path, help="keep the exports in this folder")
    arguments = parser.parse_args()
    quiet_libraries()
    rows = None if arguments.rows == "all" else int(arguments.rows)
    place = contextlib.nullcontext(arguments.output) if arguments.output else tempfile.TemporaryDirectory()
    with place as folder:
        measured = measure(arguments.run, Path(folder), rows, arguments.quantize)
    print(table(measured))
    print(json.dumps(measured[0].check.engine_versions | measured[-1].check.engine_versions))
    for row in measured:
        for problem in row.check.problems:
            print(f"{row.name}: {problem}", file=sys.stderr)
    sys.exit(3 if any(not row.check.passed for row in measured) else 0)


if __name__ == "__main__":
    main()
