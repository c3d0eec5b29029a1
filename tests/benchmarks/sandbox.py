"""The sandbox compared with plain CPython: verdicts on all reference solutions of MBPP and HumanEval, and the time per
row.

    python -m tests.benchmarks.sandbox FOLDER_OF_DATA_SETS

FOLDER holds mbpp/mbpp_std.jsonl and humaneval/HumanEval.jsonl. Plain CPython runs each row in an unrestricted process:
use only solutions that you trust. Rows with different verdicts are printed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.scoring.python_tests import row_tests
from pipelines.scoring.sandbox import run_tests
from pipelines.scoring.wasm_interpreter import compiled

SECONDS = 60
PLAIN = """
import json, sys, types
code, tests = json.load(sys.stdin)
module = types.ModuleType("solution")
sys.modules["solution"] = module
exec(compile(code, "code", "exec"), vars(module))
for test in tests:
    exec(compile(test, "test", "exec"), vars(module))
"""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def rows(folder: Path) -> Iterator[tuple[str, str, dict[str, Any], list[str]]]:
    """Yields the name of each row, its solution, its columns for alfine, and its tests for CPython."""
    for row in lines(folder / "mbpp" / "mbpp_std.jsonl"):
        call = [row["test"], f"check({row['entry_point']})"]
        yield f"MBPP list {row['task_id']}", row["code"], {"tests": row["test_list"]}, row["test_list"]
        yield (
            f"MBPP check {row['task_id']}",
            row["code"],
            {"tests": row["test"], "entry_point": row["entry_point"]},
            call,
        )
    for row in lines(folder / "humaneval" / "HumanEval.jsonl"):
        call = [row["test"], f"check({row['entry_point']})"]
        fields = {"tests": row["test"], "entry_point": row["entry_point"]}
        yield row["task_id"], row["prompt"] + row["canonical_solution"], fields, call


def plain(code: str, tests: list[str]) -> bool:
    command = [sys.executable, "-I", "-W", "ignore", "-c", PLAIN]
    try:
        process = subprocess.run(
            command, input=json.dumps([code, tests]), text=True, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    return process.returncode == 0


def main() -> None:
    examples = list(rows(Path(sys.argv[1])))
    with ThreadPoolExecutor(2) as pool:
        expected = list(pool.map(lambda row: plain(row[1], row[3]), examples))
    started = time.perf_counter()
    compiled()
    print(f"interpreter loaded in {time.perf_counter() - started:.1f} s")
    counts: dict[str, list[int]] = {}
    slowest = []
    for (name, code, fields, _), right in zip(examples, expected, strict=True):
        started, cpu = time.perf_counter(), time.process_time()
        try:
            result = run_tests(code, row_tests(fields))
            verdict, message = result.passed == result.total, result.message
        except DataError as error:
            verdict, message = False, str(error)
            print(f"{name}: refused: {error}")
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        slowest.append((cpu, name))
        sums = counts.setdefault(name.rsplit(" ", 1)[0].split("/")[0], [0, 0, 0, 0.0, 0.0])
        for index, value in enumerate((1, right, verdict == right, seconds, cpu)):
            sums[index] += value
        if verdict != right:
            print(f"{name}: CPython {'passes' if right else 'fails'}, the sandbox: {message or 'passes'} ({cpu:.1f} s)")
    for name, (total, passed, same, seconds, cpu) in counts.items():
        print(
            f"{name}: {total} rows, {passed} pass in CPython, {same} with the same verdict in the sandbox; "
            f"{1000 * seconds / total:.0f} ms per row ({1000 * cpu / total:.0f} ms of processor time)"
        )
    print("slowest:", ", ".join(f"{name} {cpu:.1f} s" for cpu, name in sorted(slowest, reverse=True)[:5]))


if __name__ == "__main__":
    main()
