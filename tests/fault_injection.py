"""Kills runs at random times. Each must end like an uninterrupted run: bitwise identical weights, the same completions,
the same report except for times.

    python -m tests.fault_injection [--kills 100] [--packaged] [--seed 0]

Every run starts with an empty cache and is killed once or several times (mostly SIGKILL, also SIGTERM and SIGINT)
between its first file and its last. `--packaged` uses the packaged model instead of a tiny one. Children are forked
from a process that has imported everything and computed nothing, since importing Ludwig takes longer than the run.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from tests.tiny import make_model

SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
IMPORTED = (
    "ludwig.api",
    "peft",
    "pipelines.training.ludwig_training",
    "pipelines.forgetting.context",
    "pipelines.evaluation.evaluator",
    "pipelines.run",
    "pipelines.report",
    "tests.jobs",
)
VARYING_KEYS = {"seconds", "finished", "peak_memory_bytes", "run", "command", "stages"}
"""Keys of report.json whose values differ between equal runs."""


def run_in_child(
    work: Callable[[], None], kill_after: float | None = None, kill_signal: int = signal.SIGKILL
) -> int | None:
    """The exit code of `work` in a forked process, None if `kill_signal` ended it after `kill_after` seconds."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    is_signaled = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return None if is_signaled and status else os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL if is_signaled else kill_signal)
            is_signaled, deadline = True, time.monotonic() + 30
        time.sleep(0.005)


def result_of(run: Path) -> dict[str, Any]:
    """The part of a run that must be equal: digests of the weights, completions and scores, and the report without
    VARYING_KEYS."""
    files = [
        *run.glob("model/*.safetensors"),
        *run.glob("*/completions.jsonl"),
        *run.glob("retention/*.jsonl"),
        *run.glob("forgetting/*"),
    ]
    digests: dict[str, Any] = {str(path.relative_to(run)): _digest(path) for path in sorted(files)}
    return {**digests, "report": _without_varying_keys(json.loads((run / "report.json").read_text(encoding="utf-8")))}


def _digest(path: Path) -> str:
    """The sha256 of a file. Of a safetensors file, whose header has no fixed order, that of metadata and tensors."""
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, "numpy") as file:
        parts = [repr(sorted((file.metadata() or {}).items())).encode()]
        for name in sorted(file.keys()):
            parts += [name.encode(), file.get_tensor(name).tobytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _without_varying_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_varying_keys(child) for key, child in value.items() if key not in VARYING_KEYS}
    return [_without_varying_keys(item) for item in value] if isinstance(value, list) else value


def make_project(packaged: bool) -> None:
    """Writes job.yaml and its rows into the working folder: two epochs with a validation every second step."""
    if not packaged:
        make_model(Path("base"))
    rows = [
        {
            "q": f"is {['tea', 'ice'][index // 4 % 2]} {index} hot",
            "a": ["no", "yes"][index // 4 % 2],
            "split": ["train", "train", "validation", "test"][index % 4],
        }
        for index in range(32)
    ]
    Path("odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("choices.jsonl").write_text(json.dumps({"question": "is 3 odd", "choices": ["no", "yes"], "answer": 1}) + "\n")
    config = {
        "pipeline": {
            "tasks": {
                "odd": {
                    "data": "odd.jsonl",
                    "prompt": "{q}?",
                    "completion": "{a}",
                    "metric": "exact_match",
                    "max_new_tokens": 4,
                }
            },
            "forgetting": {
                "strategy": "replay+distill+si",
                "si": {"importance_steps": 2},
                "eval_steps": 3,
                "evals": {"known": {"kind": "multiple_choice", "data": "choices.jsonl"}},
            },
        },
        "base_model": "smollm2-135m-instruct" if packaged else "./base",
        "adapter": {"type": "lora", "r": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        "trainer": {
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 0.001,
            "steps_per_checkpoint": 2,
            "optimizer": {"type": "adamw"},
        },
        "generation": {"max_new_tokens": 4},
    }
    Path("job.yaml").write_text(json.dumps(config))


def start_run(name: str, cache: Path) -> None:
    os.environ["ALFINE_CACHE"] = str(cache)
    importlib.import_module("tests.jobs").run(name)


def run_trials(kills: int, packaged: bool, seed: int, log: Callable[[str], None] = print) -> Counter[str]:
    """Starts runs until `kills` of them were hit, and returns the number of kills after each stage.

    Raises AssertionError if a run ends with another result.
    """
    warnings.filterwarnings("ignore", message=".*use of fork")
    for name in IMPORTED:
        importlib.import_module(name)
    rng = random.Random(seed)
    working_folder = os.getcwd()
    hits: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            assert run_in_child(lambda: make_project(packaged)) == 0, Path("log").read_text()
            cache = os.environ.get("ALFINE_CACHE") if packaged else None
            started = time.monotonic()
            uninterrupted = run_in_child(lambda: start_run("uninterrupted", Path(cache or "cache-uninterrupted")))
            assert uninterrupted == 0, Path("log").read_text()
            seconds, expected = time.monotonic() - started, result_of(Path("runs/uninterrupted"))
            log(f"uninterrupted: {seconds:.1f} s")
            run_number = 0
            while hits.total() < kills:
                run_number += 1
                name = f"run{run_number}"
                _kill_until_complete(name, Path(cache or f"cache-{run_number}"), seconds, rng, hits)
                result = result_of(Path("runs") / name)
                assert result == expected, f"{name} (seed {seed}): another result: {differences(expected, result)}"
                log(f"{name}: same result; {hits.total()} kills so far")
        finally:
            os.chdir(working_folder)
    return hits


def _kill_until_complete(name: str, cache: Path, max_seconds: float, rng: random.Random, hits: Counter[str]) -> None:
    """Starts a run, kills it at a random time and starts it again, until it ends before the signal."""
    while True:
        kill_signal, kill_after = rng.choice(SIGNALS), rng.uniform(0, max_seconds)
        exit_code = run_in_child(lambda: start_run(name, cache), kill_after, kill_signal)
        if exit_code == 0:
            return
        assert exit_code is None or exit_code == 130, (
            f"{name}: exit code {exit_code}\n{Path('log').read_text()[-3000:]}"
        )
        manifest = Path("runs") / name / "manifest.json"
        stages = json.loads(manifest.read_text())["stages"] if manifest.exists() else {}
        hits[f"after {list(stages)[-1]}" if stages else "before the first stage"] += 1


def differences(expected: Any, actual: Any, path: str = "") -> list[str]:
    """One line per value that differs between two nested dicts."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        keys = sorted({*expected, *actual})
        return [line for key in keys for line in differences(expected.get(key), actual.get(key), f"{path}/{key}")]
    return [] if expected == actual else [f"{path}: expected {str(expected)[:80]}, got {str(actual)[:80]}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packaged", action="store_true")
    arguments = parser.parse_args()
    hits = run_trials(arguments.kills, arguments.packaged, arguments.seed, lambda line: print(line, flush=True))
    print(f"{hits.total()} kills, every run ended with the result of the uninterrupted one")
    for stage, count in hits.items():
        print(f"  {stage}: {count}")


if __name__ == "__main__":
    sys.exit(main())
