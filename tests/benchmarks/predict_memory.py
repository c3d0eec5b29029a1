"""Peak memory and speed of `alfine predict` over files of different sizes, on a tiny model.

    python -m tests.benchmarks.predict_memory [--rows 10000 100000] [--output .jsonl .parquet]

Every command is a process of its own. Its peak resident memory is VmHWM of Linux; ru_maxrss would begin with the memory
of this process. The share of the check, in which all rows are read, rendered and tokenized before the model is loaded,
is measured apart.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from pipelines.config.job import load_job
from pipelines.console.reporter import ConsoleReporter
from pipelines.prediction.predict import RowPredictor
from pipelines.run import run_job
from pipelines.storage.run_folder import Run
from tests.tiny import make_model

PREDICT = """
import re, sys
from pathlib import Path
from pipelines.cli import main
main(sys.argv[1:], standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
"""Runs the command line and writes the peak memory of the process in KiB."""
QUIET = ConsoleReporter(Console(file=io.StringIO()))


def make_run(folder: Path) -> Path:
    """A trained run of a tiny model, whose completions have at most 4 tokens."""
    make_model(folder / "base")
    rows = [{"q": f"is {n} odd", "a": ["yes", "no"][n % 2], "split": ["train", "test"][n // 2 % 2]} for n in range(20)]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"data": "odd.jsonl", "prompt": "{q}?", "completion": "{a}", "metric": "exact_match", "max_new_tokens": 4}
    config = {
        "pipeline": {"tasks": {"odd": task}, "forgetting": {"strategy": "none", "evals": "none"}},
        "base_model": "./base",
        "adapter": {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"]},
        "trainer": {"epochs": 1, "batch_size": 8},
    }
    (folder / "job.yaml").write_text(json.dumps(config))
    run_job(load_job(folder / "job.yaml"), Run(folder / "run"), "alfine run", QUIET)
    return folder / "run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--output", nargs="+", default=[".jsonl"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        run = make_run(folder)
        for num_rows in sorted(arguments.rows):
            with Path("new.jsonl").open("w") as file:
                for index in range(num_rows):
                    file.write(json.dumps({"q": f"is {index} odd " + "the tea " * (index % 7), "id": index}) + "\n")
            started = time.monotonic()
            RowPredictor(Run.open(run), ["new.jsonl"], None).check(QUIET)
            check = time.monotonic() - started
            for suffix in arguments.output:
                words = ["predict", str(run), "new.jsonl", "--output", f"out{suffix}"]
                started = time.monotonic()
                command = [sys.executable, "-c", PREDICT, *words]
                result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
                seconds = time.monotonic() - started
                peak = int(result.stdout) / 1024
                size = Path("new.jsonl").stat().st_size / 1e6
                print(
                    f"{num_rows:,} rows ({size:.1f} MB) to {suffix}: peak {peak:,.0f} MiB, {seconds:.1f} s, "
                    f"of which the check {check:.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
