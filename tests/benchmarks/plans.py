"""Plans against runs: planned and measured peak memory, and planned and measured time after calibration.

    python -m tests.benchmarks.plans [--jobs lora,full,long,auto,qlora] [--steps 12] [--memory-only]

Every job is planned with `--calibrate` and run in a process of its own, with SmolLM2-135M-Instruct on rows made from the
bundled reviews. Alone on two cores it takes about half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"type": "lora", "r": 16, "dropout": 0.0, "target_modules": ALL}
JOBS = {
    # words per row, keys beside the tasks, keys of the trainer
    "lora": (60, {"adapter": LORA}, {"batch_size": 8}),
    "full": (60, {}, {"batch_size": 8}),
    "long": (900, {"adapter": {"type": "lora", "r": 8, "dropout": 0.0}}, {"batch_size": 2}),
    "auto": (150, {"adapter": LORA}, {"batch_size": "auto", "effective_batch_size": 16}),
    "qlora": (60, {"adapter": LORA, "quantization": {"bits": 4}}, {"batch_size": 8}),
    "dropout": (150, {"adapter": {**LORA, "dropout": 0.05}}, {"batch_size": 4}),
}
PLAN = """
import json, sys
from pathlib import Path
from pipelines.config.job import load_job
from pipelines.planning.calibration import measure_rates
from pipelines.planning.plan import make_plan
from pipelines.planning.target_hardware import find_hardware

job = load_job(Path(sys.argv[1]))
measure = measure_rates if sys.argv[2] == "True" else None
print(json.dumps(make_plan(job, find_hardware(None, job.pipeline.hardware), measure=measure).record()))
"""


def write_job(folder: Path, name: str, steps: int) -> Path:
    """A job of JOBS with rows of its length: 12 for the test, 8 for validation, the others for the training."""
    words, keys, trainer = JOBS[name]
    reviews = [json.loads(line) for line in (ROOT / "data" / "sentiment.jsonl").read_text().splitlines()]
    generator = random.Random(0)
    pool = [word for review in reviews for word in review["review"].split()]
    rows = []
    for index in range(20 + max(60, steps * 16)):
        text = " ".join(generator.choice(pool) for _ in range(generator.randint(words // 2, words)))
        split = "test" if index < 12 else "validation" if index < 20 else "train"
        rows.append({"text": text, "label": reviews[index % len(reviews)]["label"], "split": split})
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"data": str(data), "prompt": "Positive or negative?\n{text}", "completion": "{label}"}
    config = {
        "pipeline": {
            "tasks": {"reviews": {**task, "metric": "exact_match", "max_new_tokens": 16}},
            "forgetting": {"strategy": "none", "evals": "none"},
        },
        "base_model": "smollm2-135m-instruct",
        "trainer": {"type": "finetune", "train_steps": steps, "learning_rate": 1e-4, **trainer},
        **keys,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def measure_job(name: str, steps: int, calibrate: bool) -> dict[str, float]:
    """Plans and runs one job. The caches of completions are fresh, so that both models answer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = write_job(folder, name, steps)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}

        def python(*arguments: str) -> str:
            command = [sys.executable, *arguments]
            result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            if result.returncode:
                raise SystemExit(f"{name}: {result.stderr[-2000:]}")
            return result.stdout

        plan = json.loads(python("-c", PLAN, str(config), str(calibrate)).splitlines()[-1])
        python("-m", "pipelines.cli", "run", str(config), "--name", "run")
        history = json.loads((folder / "runs" / "run" / "model" / "training.json").read_text())
        stages = json.loads((folder / "runs" / "run" / "manifest.json").read_text())["stages"]
        return {
            "planned_bytes": plan["peak_memory_bytes"],
            "bytes": history["peak_memory_bytes"],
            "planned_seconds": plan["training_seconds"],
            "seconds": stages["train"]["seconds"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="lora,full,long,auto,qlora")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--memory-only", action="store_true", help="do not calibrate; leave out the times")
    arguments = parser.parse_args()
    table = Table("job", "planned peak", "measured", "error", "planned training", "measured", "error")
    for name in arguments.jobs.split(","):
        result = measure_job(name, arguments.steps, not arguments.memory_only)
        memory = [f"{result['planned_bytes'] / 1e9:.2f} GB", f"{result['bytes'] / 1e9:.2f} GB"]
        memory.append(f"{result['planned_bytes'] / result['bytes'] - 1:+.0%}")
        times = [f"{result['planned_seconds']:.0f} s", f"{result['seconds']:.0f} s"]
        times.append(f"{result['planned_seconds'] / result['seconds'] - 1:+.0%}")
        table.add_row(name, *memory, *([""] * 3 if arguments.memory_only else times))
        print(name, *memory, *times, flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
