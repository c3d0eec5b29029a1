"""Throughput of `alfine serve` under load, against its own engine and a padded batch of transformers' generate.

    python -m tests.benchmarks.serving runs/quickstart [--clients 32] [--tokens 64] [--rounds 3] [--model base]

Each client sends one chat request with streaming and reads it to its end; all clients start at once. The prompts are
this repository's general instructions whose greedy answers have at least `tokens` tokens, so that every way generates
the same tokens: `clients` · `tokens` of them. The three ways are processes that run in turn in each round. Fails unless
the server reaches the bounds, and unless its answers are those of `predict`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
MIN_OF_PADDED, MIN_OF_ENGINE, MAX_MEMORY = 1.0, 0.95, 1.5 * 2**30
"""The bounds: tokens per second relative to the other ways, and the memory of the server above its models."""


def instructions() -> list[str]:
    lines = (ROOT / "data/general/instructions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["instruction"] for line in lines]


# --- workers: processes that answer one line of JSON with another -------------------------------------


def work(kind: str, run: Path, args: argparse.Namespace) -> None:
    """Serves the parent process: prepares, then measures once for each line on standard input."""
    from pipelines.console.reporter import quiet_libraries

    quiet_libraries()
    measure = {"prompts": _choose_prompts, "padded": _padded, "engine": _engine}[kind](run, args)
    for line in sys.stdin:
        print(json.dumps(measure(json.loads(line))), flush=True)


def _load(run: Path) -> Any:
    from pipelines.inference.run_models import RunModels
    from pipelines.prediction.models import tuned_job
    from pipelines.storage.run_folder import Run

    opened = Run.open(run)
    return RunModels.load(opened, tuned_job(opened))


def _prompt(models: Any, text: str) -> list[int]:
    ids: list[int] = models.prompts.from_messages([{"role": "user", "content": text}]).ids
    return ids


def _choose_prompts(run: Path, args: argparse.Namespace) -> Any:
    """Texts whose completions reach the limit, and the answers of `complete`, which `predict` calls."""
    from pipelines.evaluation.completions import complete

    models = _load(run)

    def measure(_: Any) -> dict[str, Any]:
        chosen: dict[str, str] = {}
        texts = instructions()
        for start in range(0, len(texts), args.clients):
            part = texts[start : start + args.clients]
            prompts = [_prompt(models, text) for text in part]
            with models.active(args.model) as loaded:
                completions = complete(loaded, prompts, {"do_sample": False}, [args.tokens] * len(part))
            chosen |= {
                text: one.text
                for text, one in zip(part, completions, strict=True)
                if one.num_generated_tokens == args.tokens
            }
            if len(chosen) >= args.clients:
                break
        return dict(list(chosen.items())[: args.clients])

    return measure


def _padded(run: Path, args: argparse.Namespace) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    models = _load(run)
    folder = models.run.path("model") if args.model == "tuned" else None
    from pipelines.modeling.adapters import model_source

    model = AutoModelForCausalLM.from_pretrained(model_source(models.tuned.model).folder, dtype=torch.float32).eval()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).eval()
    stops = models.prompt_format.stop_ids

    def measure(texts: list[str]) -> float:
        prompts = [_prompt(models, text) for text in texts]
        width = max(map(len, prompts))
        ids = torch.tensor([[stops[0]] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=args.tokens,
                eos_token_id=stops,
                pad_token_id=stops[0],
            )
        return time.perf_counter() - started

    measure(instructions()[:1])
    return measure


def _engine(run: Path, args: argparse.Namespace) -> Any:
    from pipelines.inference.engine import load_engine
    from pipelines.inference.requests import GenerationRequest

    models = _load(run)
    engine = load_engine(models, max_slots=args.clients)

    def measure(texts: list[str]) -> float:
        prompts = [_prompt(models, text) for text in texts]
        started = time.perf_counter()
        streams = [engine.submit(GenerationRequest(args.model, prompt, args.tokens)) for prompt in prompts]
        for stream in streams:
            stream.result()
        return time.perf_counter() - started

    measure(instructions()[:1])
    return measure


class Worker:
    """A process of this module."""

    def __init__(self, kind: str, args: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.serving", str(args.run), "--worker", kind]
        command += ["--clients", str(args.clients), "--tokens", str(args.tokens), "--model", args.model]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, value: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


# --- the server and its clients ------------------------------------------------------------------------


class Server:
    """`alfine serve` in a process, with its memory."""

    def __init__(self, args: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "pipelines.cli", "serve", str(args.run), "--port", "0"]
        command += ["--max-concurrency", str(args.clients)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        for line in self.process.stderr:
            if "http://" in line:
                self.address = line[line.index("http://") :].split()[0]
                break
        else:
            sys.exit("alfine serve did not start")
        self.memory_loaded = self.memory

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)


async def ask(session: aiohttp.ClientSession, address: str, text: str, args: argparse.Namespace) -> dict[str, Any]:
    """One client: what it receives, and the seconds to the first token."""
    body = {
        "model": args.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": args.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.perf_counter()
    parts, first = [], 0.0
    async with session.post(f"{address}/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for part in response.content.iter_any():
            first = first or time.perf_counter() - started
            parts.append(part)
    return {"first": first, "events": b"".join(parts).decode()}


def parse_client(client: dict[str, Any]) -> dict[str, Any]:
    """The answer and the tokens of a client, read after the measurement: the client shares the cores."""
    data = [line.removeprefix("data: ") for line in client["events"].split("\n\n")[:-1]]
    chunks = [json.loads(text) for text in data if text != "[DONE]"]
    answer = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    tokens = chunks[-1]["usage"]["completion_tokens"] if data[-1] == "[DONE]" else 0
    return {**client, "answer": answer, "tokens": tokens}


async def load(server: Server, texts: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """All clients at once."""
    peak = server.memory
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.perf_counter()
        clients = asyncio.gather(*(ask(session, server.address, text, args) for text in texts))
        while not clients.done():
            peak = max(peak, server.memory)
            await asyncio.wait([clients], timeout=0.25)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "clients": [parse_client(client) for client in await clients], "peak": peak}


# --- the report ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="base", choices=("base", "tuned"))
    parser.add_argument("--worker")
    args = parser.parse_args()
    args.run = args.run.resolve()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if args.worker:
        work(args.worker, args.run, args)
        return
    chooser = Worker("prompts", args)
    expected = chooser.measure(None)
    chooser.close()
    texts = list(expected)
    if len(texts) < args.clients:
        sys.exit(f"only {len(texts)} prompts have answers of {args.tokens} tokens")
    workers = {kind: Worker(kind, args) for kind in ("padded", "engine")}
    server = Server(args)
    seconds: dict[str, list[float]] = {"padded": [], "engine": [], "server": []}
    loads = []
    for _ in range(args.rounds):
        for kind, worker in workers.items():
            seconds[kind].append(worker.measure(texts))
        loads.append(asyncio.run(load(server, texts, args)))
        seconds["server"].append(loads[-1]["seconds"])
    for worker in workers.values():
        worker.close()
    server.close()
    sys.exit(report(args, expected, seconds, loads, server.memory_loaded))


def report(
    args: argparse.Namespace,
    expected: dict[str, str],
    seconds: dict[str, list[float]],
    loads: list[dict[str, Any]],
    memory_loaded: int,
) -> str | None:
    """Prints the table; returns what is out of bounds, or None."""
    total = args.clients * args.tokens
    speed = {kind: total / statistics.median(times) for kind, times in seconds.items()}
    clients = [client for one in loads for client in one["clients"]]
    first = sorted(client["first"] for client in clients)
    above = max(one["peak"] for one in loads) - memory_loaded
    equal = sum(
        client["answer"] == answer
        for one in loads
        for client, answer in zip(one["clients"], expected.values(), strict=True)
    )
    names = {
        "padded": "generate, one padded batch",
        "engine": "the engine by itself",
        "server": "alfine serve, streaming over HTTP",
    }
    table = Table("way", "tokens/s", "of generate", "of the engine", "each round, s")
    for kind, value in speed.items():
        times = ", ".join(f"{one:.1f}" for one in seconds[kind])
        shares = f"{value / speed['padded']:.2f}", f"{value / speed['engine']:.2f}"
        table.add_row(names[kind], f"{value:.0f}", *shares, times)
    print(f"{args.model}, {args.clients} clients, {args.tokens} tokens each, {os.cpu_count()} cores")
    Console().print(table)
    print(
        f"time to the first token: p50 {first[len(first) // 2]:.2f} s, p95 {first[int(len(first) * 0.95)]:.2f} s; "
        f"memory: {memory_loaded / 2**30:.2f} GiB loaded, {above / 2**30:.2f} GiB above that under load; "
        f"answers equal to predict's: {equal} of {len(clients)}"
    )
    faults = [
        speed["server"] < MIN_OF_PADDED * speed["padded"] and "slower than a padded batch",
        speed["server"] < MIN_OF_ENGINE * speed["engine"] and "slower than 0.95 of the engine",
        above > MAX_MEMORY and "more memory than 1.5 GB above the models",
        equal < len(clients) and "other answers than predict's",
        any(client["tokens"] != args.tokens for client in clients) and "not every client was served in full",
    ]
    return "; ".join(fault for fault in faults if fault) or None


if __name__ == "__main__":
    main()
