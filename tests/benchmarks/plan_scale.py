"""`alfine plan` and `alfine preview` on many rows: seconds, and memory above that of the bare process.

    python -m tests.benchmarks.plan_scale [--rows 1000000] [--format jsonl|csv|json]

The bound is 20 s and 0.5 GB for a million rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
COMMAND = """
import resource, sys
from pipelines.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{end.code} {peak}", file=sys.stderr)
"""


def run(folder: Path, *arguments: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of one command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    code, peak = result.stderr.splitlines()[-1].split()
    if code not in ("0", "None"):
        raise SystemExit(result.stderr)
    return time.perf_counter() - started, int(peak) / 1e6


def write_rows(path: Path, count: int) -> None:
    rows = (
        {"review": f"The lid leaks and cup {n} arrived late. " * (1 + n % 5), "label": ["no", "yes"][n % 2]}
        for n in range(count)
    )
    with path.open("w") as file:
        if path.suffix == ".csv":
            file.write("review,label\n")
            file.writelines(f'"{row["review"]}",{row["label"]}\n' for row in rows)
        elif path.suffix == ".json":
            file.write("[" + ",\n".join(json.dumps(row) for row in rows) + "]")
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", default="jsonl", choices=["jsonl", "csv", "json"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bare = {}
        for rows in (100, arguments.rows):
            data = folder / f"{rows}.{arguments.format}"
            write_rows(data, rows)
            task = {"data": str(data), "prompt": "{review}", "completion": "{label}", "metric": "exact_match"}
            config = {"pipeline": {"tasks": {"reviews": task}}, "base_model": "smollm2-135m-instruct"}
            (folder / "job.yaml").write_text(yaml.safe_dump(config))
            for command in ("plan", "preview"):
                seconds, peak = run(folder, command, "job.yaml")
                above = peak - bare.setdefault(command, peak)
                print(f"{command:8} {rows:>9,} rows  {seconds:5.1f} s  {peak:.2f} GB, {above:+.2f} GB", flush=True)


if __name__ == "__main__":
    main()
