"""Speed and memory of the training step of a 1.5B model, against stock Ludwig and TRL."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tests.gpu_acceptance.models import model_folder, saved_model
from tests.gpu_acceptance.registry import Context, Measurements, at_least, at_most, check
from tests.gpu_acceptance.results import free_memory
from tests.gpu_acceptance.workloads import WORKLOADS, step_flops, weights_of

ROOT = Path(__file__).parents[2]
ENGINES = {
    "alfine": "short,2048,4096",
    "ludwig": "short",
    "trl": "short,2048,4096",
    "trl_liger": "short,2048,4096",
    "trl_padding_free": "short",
}
"""The workloads of each engine, in the order in which they run."""
TRL = ("trl", "trl_liger", "trl_padding_free")


def matmul_peak(context: Context, size: int = 8192) -> float:
    """Floating-point operations per second of a product of two bf16 matrices of `size` × `size`: best of ten."""
    size = size if context.is_gpu else 256
    a, b = (torch.randn(size, size, device=context.device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        _synchronize(context)
        started = time.perf_counter()
        a @ b
        _synchronize(context)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _synchronize(context: Context) -> None:
    if context.is_gpu:
        torch.cuda.synchronize()


@check(
    2,
    150,
    at_least("times_ludwig_short", 8.0),
    at_least("times_trl_short", 1.0),
    at_least("times_trl_2048", 1.2),
    at_least("times_trl_4096", 1.2),
    at_least("mfu_2048", 0.45),
    at_most("memory_over_trl_2048", 1.0),
    at_least("engines_measured", 4),
    at_least("step_ms_short", 0.0, portable=True),
)
def training_step(context: Context) -> Measurements:
    """LoRA (r 16, seven matrices, bf16, AdamW) on a 1.5B model: tokens per second of alfine over those of stock Ludwig
    and of the fastest of TRL (as it is, with Liger's kernels, without padding), MFU, peak memory, launches and waits of a step."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    processes = {engine: _start(engine, model_folder("1.5b", context), context) for engine in ENGINES}
    watchdog = threading.Timer(context.seconds_left, lambda: [process.kill() for process in processes.values()])
    watchdog.start()
    try:
        model = saved_model("1.5b", context)  # while the engines import their packages
        config = AutoConfig.from_pretrained(model)
        for process in processes.values():
            assert process.stdout is not None
            process.stdout.readline()  # ready
        peak = matmul_peak(context)
        context.record("matmul peak", {"tflops": peak / 1e12})
        free_memory()
        for engine, process in processes.items():
            results[engine] = _results(engine, process, config, peak, context)
    finally:
        watchdog.cancel()
        for process in processes.values():
            process.kill()
    return _summary(results, peak)


def _start(engine: str, model: Path, context: Context) -> subprocess.Popen[str]:
    folder = context.folder / "engines" / engine
    folder.mkdir(parents=True, exist_ok=True)
    workloads = ENGINES[engine] if context.is_gpu else "short"
    command = [sys.executable, "-m", "tests.gpu_acceptance.engines", engine, str(model), str(folder), workloads]
    command += [] if context.is_gpu else ["--tiny"]
    log = (folder / "log.txt").open("w", encoding="utf-8")
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
    )


def _results(
    engine: str, process: subprocess.Popen[str], config: Any, peak: float, context: Context
) -> dict[str, dict[str, Any]]:
    """The results of an engine by workload, each recorded as soon as it is there."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended; the log says why
    found = {}
    for line in process.stdout:
        result = json.loads(line)
        name = result.pop("workload")
        if "seconds" in result:
            result |= _derived(name, result, config, peak, context)
        context.record(f"{engine} {name}", result)
        found[name] = result
    process.wait()
    if process.returncode:
        log = (context.folder / "engines" / engine / "log.txt").read_text(encoding="utf-8", errors="replace")
        context.record(f"{engine} failed", {"code": process.returncode, "log": log[-1500:]})
    return found


def _derived(name: str, result: dict[str, Any], config: Any, peak: float, context: Context) -> dict[str, Any]:
    workload = WORKLOADS[name]
    # Ludwig's step is one backward pass: it gets fewer rows where memory runs out.
    pairs = workload.pairs(not context.is_gpu)
    lengths = [len(prompt) + len(completion) + 1 for prompt, completion in pairs]
    num_steps = len(pairs) / workload.rows
    share = result["rows_per_pass"] / workload.rows if result.get("is_one_pass") else 1.0
    supervised = sum(len(completion) + 1 for _, completion in pairs)
    flops = step_flops(config, *weights_of(config), lengths, supervised) / num_steps * share
    tokens = sum(lengths) / num_steps * share
    return {"tokens_per_second": tokens / result["seconds"], "mfu": flops / result["seconds"] / peak}


def _summary(results: dict[str, dict[str, dict[str, Any]]], peak: float) -> Measurements:
    def speed(engine: str, name: str) -> float:
        return float(results.get(engine, {}).get(name, {}).get("tokens_per_second", 0.0))

    summary: Measurements = {"matmul_tflops": peak / 1e12}
    for name in WORKLOADS:
        ours, best = speed("alfine", name), max(TRL, key=lambda engine: speed(engine, name))
        if not ours:
            continue
        ours_result, trl_result = results["alfine"][name], results.get(best, {}).get(name, {})
        summary |= {f"step_ms_{name}": 1e3 * ours_result["seconds"], f"mfu_{name}": ours_result["mfu"]}
        summary |= {
            f"{key}_{name}": ours_result[key] for key in ("launches", "waits", "peak_gib") if key in ours_result
        }
        if speed(best, name):
            summary |= {f"times_trl_{name}": ours / speed(best, name), f"best_trl_{name}": best}
        if "peak_gib" in ours_result and "peak_gib" in trl_result:
            summary[f"memory_over_trl_{name}"] = ours_result["peak_gib"] / trl_result["peak_gib"]
        if speed("ludwig", name):
            summary[f"times_ludwig_{name}"] = ours / speed("ludwig", name)
    summary["engines_measured"] = sum(
        any("seconds" in result for result in found.values()) for found in results.values()
    )
    return summary
