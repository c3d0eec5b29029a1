"""Memory, file sizes and step time over a long training: as many steps as six hours hold at 2.5 s each. None of them
may grow, except by the recorded losses of each step (in memory and in both checkpoints) and the table of each
validation round in Ludwig's log.

    python -m tests.benchmarks.long_run [--steps 8640]

A tiny model through Ludwig, with replay and distillation, a validation round every fifth step and a checkpoint every
twentieth.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8640)
    steps = parser.parse_args().steps
    from pipelines.config.job import load_job
    from pipelines.console.reporter import quiet_libraries
    from pipelines.data.examples import load_examples
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.data.tokenize_rows import tokenize_examples, write_splits
    from pipelines.storage.run_folder import Run
    from pipelines.training.train import train
    from tests.tiny import make_model

    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["ALFINE_CACHE"] = folder
        base = make_model(Path("base"))
        rows = [
            {
                "q": f"is {index} odd",
                "a": ["no", "yes"][index % 2],
                "split": ["train", "validation", "test"][index // 2 % 3],
            }
            for index in range(60)
        ]
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {"data": "rows.jsonl", "prompt": "{q}?", "completion": "{a}", "metric": "exact_match"}
        config = {
            "base_model": str(base),
            "pipeline": {"tasks": {"t": task}, "forgetting": {"strategy": "replay+distill", "evals": "none"}},
            "adapter": {"type": "lora", "r": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
            "trainer": {
                "train_steps": steps,
                "batch_size": 4,
                "learning_rate": 0.0001,
                "steps_per_checkpoint": 20,
                "early_stop": -1,
            },
        }
        Path("job.yaml").write_text(json.dumps(config))
        job, run = load_job(Path("job.yaml")), Run(Path("run"))
        write_splits(tokenize_examples(load_examples(job.pipeline), PromptFormat.from_folder(base)), run.path("data"))
        samples: list[tuple[float, int, int]] = []

        def report(steps_done: int, total: int, loss: float | None) -> None:
            if loss is None:  # at the start of an epoch
                return
            size = 0
            if steps_done % 100 == 0:
                size = sum(path.stat().st_size for path in Path("run").rglob("*") if path.is_file())
            with open("/proc/self/statm") as file:
                memory = int(file.read().split()[1]) * resource.getpagesize()
            samples.append((time.monotonic(), memory, size))

        train(job, run, base, report)
        table = Table("steps", "median step, ms", "memory, MB", "files, MB")
        tenth = len(samples) // 10
        for start in range(0, tenth * 10, tenth):
            part = samples[start : start + tenth]
            step = statistics.median(later[0] - earlier[0] for earlier, later in zip(part, part[1:], strict=False))
            files = max(size for _, _, size in part)
            table.add_row(
                f"{start} to {start + tenth}", f"{1000 * step:.1f}", f"{part[-1][1] / 1e6:.0f}", f"{files / 1e6:.2f}"
            )
        Console().print(table)


if __name__ == "__main__":
    main()
