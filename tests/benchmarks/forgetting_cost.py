"""Overhead of each strategy: time of an optimizer step and peak memory relative to the baseline run, and the time of
the Fisher information relative to an epoch.

    python -m tests.benchmarks.forgetting_cost [--rounds 3] [--steps 12] [STRATEGY ...]

The quickstart's rows, model and LoRA, trained through Ludwig for a few steps. The strategies run in turn, each in its
own process; the results are medians over all steps but the first two of every round. What is computed once per model
(answers of the base, Fisher information, SI's importance) is cached before and timed separately.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

STRATEGIES = ("ewc", "si", "l2sp", "replay", "distill", "replay+distill")
ROOT = Path(__file__).parents[2]


class StopTraining(Exception):
    """The requested number of steps is complete."""


def time_steps(strategy: str, steps: int) -> None:
    """Prints the seconds of every step and the peak memory, as JSON."""
    from pipelines.config.job import load_job
    from pipelines.console.reporter import quiet_libraries
    from pipelines.data.examples import load_examples
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.data.tokenize_rows import tokenize_examples, write_splits
    from pipelines.modeling.base_models import ensure_base_model
    from pipelines.storage.run_folder import Run
    from pipelines.training.train import train

    quiet_libraries()
    job = load_job(ROOT / "ludwig_configs" / "quickstart.yaml", [f"pipeline.forgetting={strategy}"])
    base = ensure_base_model(job.base_model)
    stamps: list[float] = []

    def report(step: int, total: int, loss: float | None) -> None:
        stamps.append(time.monotonic())
        if step == steps:
            raise StopTraining

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        rows = [
            row
            for row in tokenize_examples(load_examples(job.pipeline), PromptFormat.from_folder(base))
            if row.example.split == "train"
        ]
        write_splits(rows, run.path("data"))
        with contextlib.suppress(StopTraining):
            train(job, run, base, report)
    seconds = [later - earlier for earlier, later in zip(stamps, stamps[1:], strict=False)]
    print(json.dumps({"steps": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def measure(strategy: str, steps: int) -> dict[str, object]:
    command = [sys.executable, "-m", "tests.benchmarks.forgetting_cost", "--single", strategy, "--steps", str(steps)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def fisher_seconds() -> float:
    """The seconds that the Kronecker-factored Fisher information of LoRA takes on 256 sequences of general text."""
    from peft import LoraConfig, get_peft_model

    from pipelines.config.job import load_job
    from pipelines.forgetting.context import ForgettingContext
    from pipelines.forgetting.fisher_information import lora_fisher
    from pipelines.modeling.base_models import ensure_base_model
    from pipelines.modeling.loading import load_causal_lm
    from pipelines.storage.run_folder import Run

    job = load_job(ROOT / "ludwig_configs" / "quickstart.yaml")
    base = ensure_base_model(job.base_model)
    rows = ForgettingContext(job, Run(Path(tempfile.gettempdir()) / "no-run"), base).sample_general_text(256)
    adapter = job.adapter
    config = LoraConfig(
        r=adapter["r"], lora_alpha=adapter["alpha"], target_modules=adapter["target_modules"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(load_causal_lm(base, allow_half_precision=True), config)
    started = time.monotonic()
    lora_fisher(model, rows, seed=0)
    return time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("strategies", nargs="*", help=f"in addition to the baseline; default: {' '.join(STRATEGIES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--single")
    args = parser.parse_args()
    if args.single:
        time_steps(args.single, args.steps)
        return
    strategies = ("none", *(args.strategies or STRATEGIES))
    for strategy in ("ewc", "si", "replay"):
        measure(strategy, 1)
    fisher = fisher_seconds()
    results: dict[str, list[dict]] = {strategy: [] for strategy in strategies}
    for _ in range(args.rounds):
        for strategy in strategies:
            results[strategy].append(measure(strategy, args.steps))
    times = {
        name: statistics.median(s for result in runs for s in result["steps"][2:]) for name, runs in results.items()
    }
    memory = {name: max(result["memory"] for result in runs) for name, runs in results.items()}
    table = Table("strategy", "step, s", "relative to baseline", "peak memory, GB", "relative to baseline")
    for name in strategies:
        table.add_row(
            name,
            f"{times[name]:.3f}",
            f"{times[name] / times['none']:.3f}",
            f"{memory[name] / 1e9:.2f}",
            f"{memory[name] / memory['none']:.3f}",
        )
    Console().print(table)
    print(
        f"Fisher information of 256 sequences: {fisher:.1f} s; "
        f"an epoch of the quickstart is 101 steps, {101 * times['none']:.0f} s"
    )


if __name__ == "__main__":
    main()
