"""Generation speed of alfine, stock Ludwig's predict, and transformers' generate (one row at a time, and in a padded
batch).

    python -m tests.benchmarks.completions [--tokens 64] [--rows 128] [--rounds 3]

The prompts are this repository's general instructions and sentiment rows. The engines run in turn, each after one
warm-up row, and generate up to `tokens` greedy tokens per row. Ludwig and generate, which process one row at a time,
get an eighth of the rows.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipelines.data.conversation import Conversation
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.modeling.base_models import ensure_base_model

ROOT = Path(__file__).parents[2]
BATCH = 32


def load_prompts(count: int) -> list[str]:
    general = [
        json.loads(line)["instruction"] for line in (ROOT / "data/general/instructions.jsonl").read_text().splitlines()
    ]
    reviews = [json.loads(line)["review"] for line in (ROOT / "data/sentiment.jsonl").read_text().splitlines()]
    mixed = [
        text
        for pair in zip(general, (f"Positive or negative?\n{review}" for review in reviews), strict=False)
        for text in pair
    ]
    return mixed[:count]


def alfine(model: Path, prompts: list[str], tokens: int) -> float:
    loaded = LoadedModel.from_folder(model)
    encoded = loaded.prompt_format.encode_conversations([Conversation.single_turn(text) for text in prompts])
    ids = [prompt.prompt_ids for prompt in encoded]
    complete(loaded, ids[:1], {"do_sample": False}, [tokens])
    started = time.perf_counter()
    complete(loaded, ids, {"do_sample": False}, [tokens] * len(ids))
    return (time.perf_counter() - started) / len(ids)


def generate(model: Path, prompts: list[str], tokens: int, batch: int = 1) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]

    def generate_batch(rows: list[str]) -> None:
        encoded = tokenizer(rows, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            plain.generate(**encoded, do_sample=False, max_new_tokens=tokens)

    generate_batch(texts[:1])
    started = time.perf_counter()
    for start in range(0, len(texts), batch):
        generate_batch(texts[start : start + batch])
    return (time.perf_counter() - started) / len(texts)


def batches(model: Path, prompts: list[str], tokens: int) -> float:
    return generate(model, prompts, tokens, BATCH)


def ludwig(model: Path, prompts: list[str], tokens: int) -> float:
    import pandas as pd
    from ludwig.api import LudwigModel

    config = {
        "model_type": "llm",
        "base_model": str(model),
        "input_features": [{"name": "prompt", "type": "text"}],
        "output_features": [{"name": "completion", "type": "text"}],
        "generation": {"do_sample": False, "max_new_tokens": tokens},
        "trainer": {"type": "none"},
        "backend": {"type": "local"},
        "preprocessing": {"split": {"type": "fixed"}},
    }
    frame = pd.DataFrame({"prompt": prompts, "completion": "x"}).assign(split=2)
    stock = LudwigModel(config, logging_level=logging.ERROR)
    stock.train(dataset=frame.assign(split=0)[:4], output_directory=tempfile.mkdtemp(), skip_save_processed_input=True)
    started = time.perf_counter()
    stock.predict(frame, skip_save_unprocessed_output=True, skip_save_predictions=True)
    return (time.perf_counter() - started) / len(prompts)


ENGINES = {"alfine": alfine, "ludwig": ludwig, "generate": generate, "batches": batches}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--single")
    args = parser.parse_args()
    model = ensure_base_model(args.model)
    if args.single:
        from pipelines.console.reporter import quiet_libraries

        os.environ["HF_HUB_OFFLINE"] = "1"
        quiet_libraries()
        print(json.dumps(ENGINES[args.single](model, load_prompts(args.rows), args.tokens)))
        return
    seconds_per_row: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(args.rounds):
        for engine in ENGINES:
            rows = args.rows if engine in ("alfine", "batches") else max(1, args.rows // 8)
            command = [sys.executable, "-m", "tests.benchmarks.completions", "--single", engine, "--rows", str(rows)]
            command += ["--tokens", str(args.tokens), "--model", str(model)]
            process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if process.returncode:
                sys.exit(f"{engine}: {process.stderr[-2000:]}")
            seconds_per_row[engine].append(json.loads(process.stdout.splitlines()[-1]))
    seconds = {engine: statistics.median(times) for engine, times in seconds_per_row.items()}
    names = {"generate": "generate, one row at a time", "batches": f"generate, batches of {BATCH}"}
    table = Table("engine", "s/row", "rows/s", "speedup of alfine")
    for engine, median in seconds.items():
        table.add_row(
            names.get(engine, engine), f"{median:.3f}", f"{1 / median:.2f}", f"{median / seconds['alfine']:.1f}"
        )
    print(f"{args.rows} rows, up to {args.tokens} new tokens, {os.cpu_count()} cores")
    Console().print(table)


if __name__ == "__main__":
    main()
