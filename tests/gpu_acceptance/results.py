"""Runs checks, appends each result to a file at once, and writes the tables at the end."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.gpu_acceptance.registry import Check, Context, Measurements

RESULTS = "results.jsonl"


def append(file: Path, entry: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry, default=str) + "\n")
        stream.flush()
    status, name = entry.get("status", "…"), entry["check"]
    shown = {key: value for key, value in entry.items() if key not in ("check", "part", "status", "bounds")}
    print(f"{status:>8} {name} {json.dumps(shown, default=str)[:600]}", flush=True)


def run_check(check: Check, context: Context, file: Path) -> dict[str, Any]:
    """Runs a check and appends its result. An exception is a result as well."""
    entry: dict[str, Any] = {"check": check.name, "part": check.part}
    context.record = lambda name, measurements: append(
        file, {"check": f"{check.name}: {name}", "part": check.part, "measurements": measurements}
    )
    if check.needs_gpu and not context.is_gpu:
        entry |= {"status": "skipped", "reason": "needs a GPU"}
    elif context.seconds_left < check.seconds and context.is_gpu:
        entry |= {"status": "skipped", "reason": f"{check.seconds:.0f} s do not fit in {context.seconds_left:.0f} s"}
    else:
        started = time.monotonic()
        try:
            measurements = check.function(context)
            entry |= judge(check, measurements, context.is_gpu)
        except Exception as error:
            lines = traceback.format_exc().splitlines()
            entry |= {"status": "error", "error": f"{type(error).__name__}: {error}"[:1000], "trace": lines[-12:]}
        entry["seconds"] = round(time.monotonic() - started, 1)
    append(file, entry)
    return entry


def judge(check: Check, measurements: Measurements, is_gpu: bool) -> dict[str, Any]:
    bounds = {str(bound): bound.holds(measurements) for bound in check.bounds if is_gpu or bound.portable}
    return {
        "status": "passed" if all(bounds.values()) else "failed",
        "measurements": measurements,
        "bounds": bounds,
    }


def free_memory() -> bool:
    """Frees cached memory. Returns whether the GPU still works: some errors disable it for the process."""
    gc.collect()
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    except RuntimeError:
        return False
    return True


def write_tables(folder: Path, checks: Sequence[Check]) -> None:
    """Writes results.json and results.md from all lines in the folder so far, also of earlier parts."""
    lines = [json.loads(line) for line in (folder / RESULTS).read_text(encoding="utf-8").splitlines()]
    (folder / "results.json").write_text(json.dumps(lines, indent=1), encoding="utf-8")
    described = {check.name: check.description for check in checks}
    results = {line["check"]: line for line in lines if "status" in line}
    table = ["| part | check | result | measured | bounds | seconds |", "|---|---|---|---|---|---|"]
    for name, line in results.items():
        measured = "; ".join(f"{key} {_format(value)}" for key, value in line.get("measurements", {}).items())
        bounds = "; ".join(f"{'✓' if holds else '✗'} {bound}" for bound, holds in line.get("bounds", {}).items())
        text = measured or line.get("error") or line.get("reason", "")
        cells = (line["part"], name, line["status"], _cell(text), _cell(bounds), line.get("seconds", ""))
        table.append("| " + " | ".join(map(str, cells)) + " |")
    notes = [f"- `{name}`: {described[name]}" for name in results if described.get(name)]
    parts = [line for line in lines if "status" not in line]
    details = [f"- {line['check']}: {_cell(json.dumps(line['measurements'], default=str))}" for line in parts]
    text = "\n".join([*table, "", *notes, "", *details, ""])
    (folder / "results.md").write_text(text, encoding="utf-8")
    print(text)


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:900]
