"""Speedup of a second worker and cost of the all-reduce: steps of one and of two processes, one thread each.

    python -m tests.benchmarks.workers [--steps 8] [--rounds 2]

The quickstart's rows and model, LoRA and full fine-tuning, with the same rows per step. `all-reduce`: the part of a
step in which a worker waits for the sums of the gradients after its backward pass, through gloo on this machine.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
CONFIGS = {"lora": "quickstart", "full": "full_finetune"}


class StopTraining(Exception):
    """The requested number of steps is complete."""


def time_steps(kind: str, run_folder: Path, steps: int) -> None:
    """Trains a few steps in each process. Rank 0 prints {"steps": [seconds], "all_reduce": [seconds], "bytes": per
    step}."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    from pipelines.config.job import load_job
    from pipelines.modeling.base_models import ensure_base_model
    from pipelines.storage.run_folder import Run
    from pipelines.training.gradient_reduction import GradientReduction
    from pipelines.training.train import train

    job = load_job(ROOT / "ludwig_configs" / f"{CONFIGS[kind]}.yaml", ["pipeline.forgetting=none"])
    stamps: list[float] = []
    reduce_seconds: list[float] = []
    sent: list[int] = []
    finish = GradientReduction.finish

    def timed(self, *extra):  # type: ignore[no-untyped-def]
        started = time.perf_counter()
        finish(self, *extra)
        reduce_seconds.append(time.perf_counter() - started)
        sent.append(sum(weight.nbytes for weight in self.weights) if self.process_group.world_size > 1 else 0)

    GradientReduction.finish = timed  # type: ignore[method-assign]

    def report(step: int, total: int, loss: float | None) -> None:
        stamps.append(time.perf_counter())
        if step == steps:
            raise StopTraining

    with contextlib.suppress(StopTraining):
        train(job, Run(run_folder), ensure_base_model(job.base_model), report)
    if int(os.environ.get("RANK", "0")) == 0:
        seconds = [later - earlier for earlier, later in zip(stamps, stamps[1:], strict=False)]
        print(
            "\n"
            + json.dumps(
                {"steps": seconds, "all_reduce": reduce_seconds or [0.0] * steps, "bytes": max(sent, default=0)}
            )
        )


def measure(kind: str, workers: int, steps: int) -> dict:
    from pipelines.config.job import load_job
    from pipelines.data.examples import load_examples
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.data.tokenize_rows import tokenize_examples, write_splits
    from pipelines.modeling.base_models import ensure_base_model

    job = load_job(ROOT / "ludwig_configs" / f"{CONFIGS[kind]}.yaml")
    with tempfile.TemporaryDirectory() as folder:
        prompt_format = PromptFormat.from_folder(ensure_base_model(job.base_model))
        write_splits(tokenize_examples(load_examples(job.pipeline), prompt_format), Path(folder) / "data")
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)] if workers > 1 else []
        )
        command = [
            sys.executable,
            *launcher,
            "-m",
            "tests.benchmarks.workers",
            "--single",
            kind,
            "--folder",
            folder,
            "--steps",
            str(steps),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if not lines:
        sys.exit(process.stderr[-3000:])
    return dict(json.loads(lines[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--single", choices=CONFIGS)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.single:
        time_steps(args.single, args.folder, args.steps)
        return
    table = Table("job", "workers", "step, s", "faster by", "reduce_seconds up, s", "sent a step, MB")
    for kind in CONFIGS:
        results: dict[int, list[dict]] = {1: [], 2: []}
        for _ in range(args.rounds):
            for workers, runs in results.items():
                runs.append(measure(kind, workers, args.steps))
        one_worker = statistics.median(s for run in results[1] for s in run["steps"][2:])
        for workers, runs in results.items():
            step = statistics.median(s for run in runs for s in run["steps"][2:])
            reduce_seconds = statistics.median(s for run in runs for s in run["all_reduce"][2:])
            sent = runs[0]["bytes"] / 1e6 if workers > 1 else 0
            table.add_row(
                kind, str(workers), f"{step:.2f}", f"{one_worker / step:.2f}", f"{reduce_seconds:.3f}", f"{sent:.0f}"
            )
    Console().print(table)


if __name__ == "__main__":
    main()
