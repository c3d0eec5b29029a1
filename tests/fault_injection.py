"""Runs killed at random moments, each of which must end as the undisturbed one: the same weights to the bit, the same answers,
the same report but for times.

    python -m tests.fault_injection [--kills 100] [--embedded] [--seed 0]

Every run starts with an empty cache and is killed once or several times (SIGKILL mostly, SIGTERM and SIGINT too), anywhere between
its first file and its last. `--embedded` takes the embedded model instead of a tiny one. Children are forked from a process that has
imported everything and computed nothing, since importing Ludwig would take longer than the run.
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
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIGNALS = [signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT]
IMPORTED = (
    "ludwig.api",
    "peft",
    "pipelines.training.trainer",
    "pipelines.forgetting.build",
    "pipelines.evaluation.evaluator",
    "pipelines.run",
    "pipelines.report",
    "tests.jobs",
)
TIMES = {"seconds", "finished", "peak_memory_bytes", "run", "command", "stages"}
"""Of report.json: what may differ."""


def in_a_child(work: Callable[[], None], seconds: float | None = None, how: int = signal.SIGKILL) -> int | None:
    """The exit code of `work` in a forked process; None where the signal was sent before it had ended."""
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
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    ends = None if seconds is None else time.monotonic() + seconds
    sent = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return None if sent and status else os.waitstatus_to_exitcode(status)
        if ends is not None and time.monotonic() > ends:
            os.kill(child, how if not sent else signal.SIGKILL)
            sent, ends = True, time.monotonic() + 30
        time.sleep(0.005)


def outcome(run: Path) -> dict[str, Any]:
    """What must be the same: digests of the weights and answers, and the report without times."""
    files = [
        *run.glob("model/*.safetensors"),
        *run.glob("*/completions.jsonl"),
        *run.glob("retention/*.jsonl"),
        *run.glob("forgetting/*"),
    ]
    found: dict[str, Any] = {str(path.relative_to(run)): _digest(path) for path in sorted(files)}
    return {**found, "report": _without_times(json.loads((run / "report.json").read_text(encoding="utf-8")))}


def _digest(path: Path) -> str:
    """Of a file; of safetensors, whose header has no order, of what it holds."""
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        parts = [repr(sorted((file.metadata() or {}).items())).encode()]
        for name in sorted(file.keys()):
            parts += [name.encode(), file.get_tensor(name).tobytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if key not in TIMES}
    return [_without_times(one) for one in value] if isinstance(value, list) else value


def make_project(embedded: bool) -> None:
    """job.yaml and its rows, in the working folder; two epochs with a validation round every second step."""
    from tests.tiny import make_model

    if not embedded:
        make_model(Path("base"))
    rows = [
        {
            "q": f"is {['tea', 'ice'][n // 4 % 2]} {n} hot",
            "a": ["no", "yes"][n // 4 % 2],
            "split": ["train", "train", "validation", "test"][n % 4],
        }
        for n in range(32)
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
        "base_model": "smollm2-135m-instruct" if embedded else "./base",
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


def do_run(name: str, cache: Path) -> None:
    os.environ["ALFINE_CACHE"] = str(cache)
    from tests.jobs import run

    run(name)


def trials(kills: int, embedded: bool, seed: int, say: Callable[[str], None] = print) -> Counter[str]:
    """Runs until so many kills have hit; how many fell into each stage. Raises AssertionError where a run ends otherwise."""
    warnings.filterwarnings("ignore", message=".*use of fork")
    for name in IMPORTED:
        importlib.import_module(name)
    draw = random.Random(seed)
    before = os.getcwd()
    hits: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            assert in_a_child(lambda: make_project(embedded)) == 0, Path("log").read_text()
            cache = os.environ.get("ALFINE_CACHE") if embedded else None
            started = time.monotonic()
            assert in_a_child(lambda: do_run("whole", Path(cache or "cache-whole"))) == 0, Path("log").read_text()
            whole, expected = time.monotonic() - started, outcome(Path("runs/whole"))
            say(f"undisturbed: {whole:.1f} s")
            number = 0
            while hits.total() < kills:
                number += 1
                name = f"run{number}"
                _one(name, Path(cache or f"cache-{number}"), whole, draw, hits)
                found = outcome(Path("runs") / name)
                assert found == expected, f"{name} (seed {seed}) ended otherwise: {differences(expected, found)}"
                say(f"{name}: the same; {hits.total()} kills so far")
        finally:
            os.chdir(before)
    return hits


def _one(name: str, cache: Path, whole: float, draw: random.Random, hits: Counter[str]) -> None:
    while True:
        how, seconds = draw.choice(SIGNALS), draw.uniform(0, whole)
        ended = in_a_child(lambda: do_run(name, cache), seconds, how)
        if ended == 0:
            return
        assert ended is None or ended == 130, f"{name}: exit code {ended}\n{Path('log').read_text()[-3000:]}"
        manifest = Path("runs") / name / "manifest.json"
        stages = json.loads(manifest.read_text())["stages"] if manifest.exists() else {}
        hits["behind " + (list(stages)[-1] if stages else "nothing")] += 1


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        keys = sorted({*expected, *found})
        return [line for key in keys for line in differences(expected.get(key), found.get(key), f"{where}/{key}")]
    return [] if expected == found else [f"{where}: {str(expected)[:80]} is {str(found)[:80]}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embedded", action="store_true")
    given = parser.parse_args()
    hits = trials(given.kills, given.embedded, given.seed, lambda line: print(line, flush=True))
    print(f"{hits.total()} kills, every run ended as the undisturbed one")
    for stage, count in hits.items():
        print(f"  {stage}: {count}")


if __name__ == "__main__":
    sys.exit(main())
