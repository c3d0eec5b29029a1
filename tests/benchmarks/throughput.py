"""Training throughput of alfine, stock Ludwig, TRL, the same step without a framework, and the limit of the machine.

    python -m tests.benchmarks.throughput [--rows FILE] [--engines alfine,ludwig,trl,limit] [--rounds 3] [--count 128]

FILE is JSON Lines with `instruction`, `input` and `output`; without it, rows of very different lengths are built from
the data in this repository. Each engine trains LoRA (r 8 on q and v, AdamW, 8 rows per step) on the same rows and
model, in turn, in its own process. Padding does not count as tokens. `limit` is only the model: packed sequences,
logits at supervised positions. `peak` is a roofline: the throughput with every matmul at the peak GEMM speed of this
machine. TRL is installed with: uv pip install trl
"""

import argparse
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.modeling.base_models import ensure_base_model

ROOT = Path(__file__).parents[2]
RATE, RANK = 2e-4, 8
LORA: dict[str, Any] = {
    "r": RANK,
    "lora_alpha": 2 * RANK,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def texts(file: Path | None, count: int) -> list[tuple[str, str]]:
    """The rendered prompt and the completion of each row."""
    if file is not None:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        random.Random(0).shuffle(rows)
        pairs = []
        for row in rows:
            extra = row.get("input") or ""
            user = row["instruction"] + (f"\n\n{extra}" if extra and extra.lower() not in ("<noinput>", "none") else "")
            if 20 < len(user) < 1200 and 5 < len(row["output"]) < 1200:
                pairs.append((user, row["output"]))
    else:
        passages = [
            json.loads(line)["text"] for line in (ROOT / "data/general/passages.jsonl").read_text().splitlines()
        ]
        reviews = [json.loads(line) for line in (ROOT / "data/sentiment.jsonl").read_text().splitlines()]
        pairs = [(f"Positive or negative?\n{row['review']}", row["label"]) for row in reviews[: count * 2 // 3]]
        for index in range(count // 3 + 1):
            selected = [passages[(index * 7 + k) % len(passages)] for k in range(1 + index % 5)]
            pairs.append(("Go on.\n" + "\n".join(selected), passages[(index * 7 + 5) % len(passages)]))
        random.Random(0).shuffle(pairs)
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    frame = turn.format("system", SYSTEM) + turn.format("user", "{}") + "<|im_start|>assistant\n"
    return [(frame.replace("{}", user), answer) for user, answer in pairs[:count]]


# --- the engines; each prints {"steps": [seconds], "memory": bytes} ---


def alfine(model: Path, pairs: list[tuple[str, str]], batch: int) -> list[float]:
    import yaml

    from pipelines.config.chat_template import PLAIN_TEXT
    from pipelines.config.job import load_job
    from pipelines.data.examples import load_examples
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.data.tokenize_rows import tokenize_examples, write_splits
    from pipelines.storage.run_folder import Run
    from pipelines.training.train import train

    folder = Path(tempfile.mkdtemp())
    for name, split in (("train", pairs), ("test", pairs[:1])):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"p": p, "c": c}) + "\n" for p, c in split), encoding="utf-8"
        )
    data = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    task = {"data": data, "prompt": "{p}", "completion": "{c}", "metric": "rouge"}
    config = {
        "base_model": str(model),
        "pipeline": {
            "tasks": {"t": task},
            "chat_template": False,
            "forgetting": {"strategy": "none", "evals": "none"},
        },
        "adapter": {
            "type": "lora",
            "r": RANK,
            "alpha": 2 * RANK,
            "dropout": 0.0,
            "target_modules": LORA["target_modules"],
        },
        "trainer": {"epochs": 1, "batch_size": batch, "learning_rate": RATE, "optimizer": {"type": "adamw"}},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    job, run = load_job(folder / "job.yaml"), Run(folder / "run")
    write_splits(
        tokenize_examples(load_examples(job.pipeline), PromptFormat.from_folder(model, PLAIN_TEXT)), run.path("data")
    )
    stamps: list[float] = []
    train(job, run, model, lambda step, total, loss: stamps.append(time.perf_counter()))
    return [later - earlier for earlier, later in zip(stamps, stamps[1:], strict=False)]


def ludwig(model: Path, pairs: list[tuple[str, str]], batch: int) -> list[float]:
    import pandas as pd
    from ludwig.api import LudwigModel
    from ludwig.callbacks import Callback

    class Clock(Callback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_batch_start(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_batch_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    clock = Clock()
    config = {
        "model_type": "llm",
        "base_model": str(model),
        "input_features": [{"name": "prompt", "type": "text", "preprocessing": {"max_sequence_length": 2048}}],
        "output_features": [{"name": "completion", "type": "text", "preprocessing": {"max_sequence_length": 1024}}],
        "preprocessing": {"global_max_sequence_length": 3072, "split": {"type": "fixed"}},
        "adapter": {"type": "lora", "r": RANK, "alpha": 2 * RANK, "dropout": 0.0},
        "trainer": {
            "type": "finetune",
            "epochs": 1,
            "batch_size": batch,
            "learning_rate": RATE,
            "skip_all_evaluation": True,
        },
        "backend": {"type": "local"},
    }
    frame = pd.DataFrame(pairs, columns=["prompt", "completion"]).assign(split=0)
    stock = LudwigModel(config, callbacks=[clock], logging_level=logging.ERROR)
    stock.train(
        dataset=frame,
        output_directory=tempfile.mkdtemp(),
        skip_save_processed_input=True,
        skip_save_progress=True,
        skip_save_log=True,
    )
    return clock.seconds


def trl(model: Path, pairs: list[tuple[str, str]], batch: int, packing: bool = False) -> list[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.stamps: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.stamps.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.stamps.append(time.perf_counter())

    clock, cuda = Clock(), torch.cuda.is_available()
    rows = Dataset.from_dict({"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]})
    settings = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=RATE,
        max_length=3072,
        logging_steps=10**9,
        save_strategy="no",
        report_to=[],
        packing=packing,
        bf16=cuda,
        use_cpu=not cuda,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16 if cuda else torch.float32),
        args=settings,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(**LORA),
        callbacks=[clock],
    )
    trainer.train()
    return [later - earlier for earlier, later in zip(clock.stamps, clock.stamps[1:], strict=False)]


def limit(model: Path, pairs: list[tuple[str, str]], batch: int) -> list[float]:
    """The training step of alfine without the framework: only this loop, nothing recorded."""
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model

    from pipelines.config.chat_template import PLAIN_TEXT
    from pipelines.data.conversation import Conversation
    from pipelines.data.prompt_format import PromptFormat
    from pipelines.modeling.loading import load_causal_lm
    from pipelines.modeling.packing import token_losses
    from pipelines.modeling.token_sequences import TokenSequences

    encoded = PromptFormat.from_folder(model, PLAIN_TEXT).encode_conversations(
        [Conversation.single_turn(*pair) for pair in pairs]
    )
    tuned = get_peft_model(load_causal_lm(model, allow_half_precision=True), LoraConfig(**LORA)).train()
    optimizer = torch.optim.AdamW([weight for weight in tuned.parameters() if weight.requires_grad], lr=RATE)
    seconds = []
    for start in range(0, len(encoded), batch):
        started, examples = time.perf_counter(), encoded[start : start + batch]
        rows = TokenSequences(
            [np.asarray(example.input_ids) for example in examples], [example.supervised_spans for example in examples]
        )
        token_losses(tuned, rows).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return seconds


ENGINES = {"alfine": alfine, "ludwig": ludwig, "trl": trl, "limit": limit}


def peak(model: Path) -> float:
    """Tokens per second if every matmul of a training step under LoRA (forward, and backward through the frozen
    weights) ran at this machine's peak GEMM throughput, and nothing else took time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    size, device = 2048, "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    best = 0.0
    for _ in range(8):
        started = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    with torch.device("meta"):
        shape = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    weights = sum(
        weight.numel() for name, weight in shape.named_parameters() if weight.dim() == 2 and "embed" not in name
    )
    print(f"matrix product: {best / 1e9:.0f} GFLOP/s; {weights / 1e6:.0f} million parameters after the embedding")
    return best / (4 * weights)


def run_engine(engine: str, model: Path, rows: Path, batch: int) -> None:
    from pipelines.console.reporter import quiet_libraries

    os.environ["HF_HUB_OFFLINE"] = "1"
    quiet_libraries()
    seconds = ENGINES[engine](model, json.loads(rows.read_text(encoding="utf-8")), batch)
    print(json.dumps({"steps": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--engines", default="alfine,ludwig,trl,limit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--single")
    args = parser.parse_args()
    model = ensure_base_model(args.model)
    if args.single:
        run_engine(args.single, model, args.rows, args.batch)
        return
    from transformers import AutoTokenizer

    pairs = texts(args.rows, args.count)
    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths = [len(tokenizer(p)["input_ids"]) + len(tokenizer(c)["input_ids"]) + 1 for p, c in pairs]
    print(
        f"{len(pairs)} rows, {sum(lengths):,} tokens ({min(lengths)} to {max(lengths)}), {args.batch} rows per step; "
        f"{os.cpu_count()} cores"
    )
    engines = args.engines.split(",")
    results: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_text(json.dumps(pairs), encoding="utf-8")
        for _ in range(args.rounds):
            for engine in engines:
                command = [sys.executable, "-m", "tests.benchmarks.throughput", "--single", engine, "--rows", str(file)]
                command += ["--model", str(model), "--batch", str(args.batch)]
                process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
                if process.returncode:
                    sys.exit(f"{engine}: {process.stderr[-2000:]}")
                results[engine].append(json.loads(process.stdout.splitlines()[-1]))
    speeds = {
        engine: statistics.median(sum(lengths) / sum(run["steps"]) for run in runs) for engine, runs in results.items()
    }
    ratio_columns = [f"× {engine}" for engine in engines if engine != "alfine"]
    table = Table("engine", "tokens/s", *ratio_columns, "peak memory, GB")
    for name, speed in speeds.items():
        ratios = [f"{speed / speeds[engine]:.2f}" for engine in engines if engine != "alfine"]
        table.add_row(name, f"{speed:.1f}", *ratios, f"{max(run['memory'] for run in results[name]) / 1e9:.2f}")
    table.add_row("peak", f"{peak(model):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
