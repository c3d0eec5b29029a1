"""Cost of up to a million rows before the first step: time and memory of the stage `prepare`, relative to the bare
tokenizer.

    python -m tests.benchmarks.preparation [--rows 1000,10000,100000,1000000]

The rows are this repository's reviews, numbered so that no two are equal. The bare tokenizer encodes the same rendered
prompts and completions in batches of a thousand. `first step`: the time from the prepared files to the rows of the
first optimizer step.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import batched, islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]


def write_rows_file(path: Path, count: int) -> None:
    reviews = [json.loads(line) for line in (ROOT / "data/sentiment.jsonl").read_text().splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            row = reviews[index % len(reviews)]
            file.write(json.dumps({"review": f"{row['review']} ({index})", "label": row["label"]}) + "\n")


def job_of(file: Path):
    from pipelines.config.job import load_job

    task = {
        "data": str(file),
        "prompt": "Is this review positive or negative?\n{review}",
        "completion": "{label}",
        "metric": "rouge",
    }
    config = {"base_model": "smollm2-135m-instruct", "pipeline": {"tasks": {"t": task}}}
    path = file.with_suffix(".yaml")
    path.write_text(json.dumps(config))
    return load_job(path)


def prepare(file: Path) -> dict[str, float]:
    from pipelines.checks.dataset import DatasetChecks
    from pipelines.data.conversation import Conversation
    from pipelines.data.examples import load_examples
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.data.tokenize_rows import tokenize_examples, write_splits
    from pipelines.modeling.base_models import context_length, ensure_base_model

    job, folder = job_of(file), ensure_base_model("smollm2-135m-instruct")
    prompt_format = PromptFormat.from_folder(folder)
    prompt_format.encode(Conversation.single_turn("warm", "up"))
    started = time.perf_counter()
    checks = DatasetChecks(job, prompt_format, context_length(folder))
    write_splits(
        checks.observe_all(tokenize_examples(load_examples(job.pipeline), prompt_format)), file.with_name("data")
    )
    checks.findings()
    return {"seconds": time.perf_counter() - started}


def bare(file: Path) -> dict[str, float]:
    from pipelines.data.examples import load_examples
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.modeling.base_models import ensure_base_model

    prompt_format = PromptFormat.from_folder(ensure_base_model("smollm2-135m-instruct"))
    examples = islice(load_examples(job_of(file).pipeline), 100_000)
    texts = [prompt_format.render_prompt(example.conversation) + example.completion for example in examples]
    prompt_format.tokenizer(texts[0])
    started = time.perf_counter()
    for batch in batched(texts, 1000):
        prompt_format.tokenizer(list(batch), add_special_tokens=False)
    return {"seconds": (time.perf_counter() - started) / len(texts)}


def first_step(file: Path) -> dict[str, float]:
    from pipelines.data.mixing import sample_epoch
    from pipelines.data.tokenize_rows import open_split
    from pipelines.modeling.token_dataset import TokenDataset
    from pipelines.training.ludwig_dataset import StepBatcher

    started = time.perf_counter()
    data = TokenDataset.from_table(open_split(file.with_name("data"), "train"))
    batcher = StepBatcher(data, 8, lambda epoch: sample_epoch(data.tasks, {"t": 1.0}, 0, epoch, True))
    batcher.set_epoch(0, 8)
    batcher.next_batch()
    return {"seconds": time.perf_counter() - started}


PARTS = {"prepare": prepare, "bare": bare, "first_step": first_step}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1000,10000,100000,1000000")
    parser.add_argument("--single")
    parser.add_argument("--file", type=Path)
    args = parser.parse_args()
    if args.single:
        result = PARTS[args.single](args.file)
        print(json.dumps({**result, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return
    table = Table("rows", "prepare, s", "rows/s", "relative to the bare tokenizer", "memory, GB", "first step, s")
    for count in map(int, args.rows.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            write_rows_file(file, count)
            results = {}
            for part in PARTS:
                command = [sys.executable, "-m", "tests.benchmarks.preparation", "--single", part, "--file", str(file)]
                process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
                if process.returncode:
                    sys.exit(f"{part}: {process.stderr[-2000:]}")
                results[part] = json.loads(process.stdout.splitlines()[-1])
        seconds = results["prepare"]["seconds"]
        table.add_row(
            f"{count:,}",
            f"{seconds:.1f}",
            f"{count / seconds:,.0f}",
            f"{seconds / count / results['bare']['seconds']:.2f}",
            f"{results['prepare']['memory'] / 1e9:.2f}",
            f"{results['first_step']['seconds']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
