"""Makes every write of a run fail once, with a full disk and an I/O error in turn. No data are lost, no partial file is
read as complete, and the same command, repeated, ends with the result of an uninterrupted run.

    python -m tests.failing_writes [--first N] [--single N]

A preloaded C library makes the calls of libc fail that Python, Rust and Arrow write with: create, write, flush and
rename a file, create a folder, in the run's folder and in the cache. The command is started until it ends without a
failure; each start fails at the first write that has not failed before (with --first, until N have failed). With
--single, N of those writes, chosen at random, also fail as the only one, each in a new run.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pipelines.cli import main as cli_main
from pipelines.data.tokenize_rows import open_split
from tests.fault_injection import IMPORTED, differences, make_project, result_of, run_in_child

SHIM = Path(__file__).with_suffix(".c")
ERROR_MESSAGES = {errno.ENOSPC: "no space left on device", errno.EIO: "input/output error"}


def run_preloaded(arguments: list[str], folder: Path) -> int:
    """Runs this program again with the library loaded before libc. Returns its exit code."""
    library = folder / "failing_writes.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl", "-lpthread"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "ALFINE_PRELOADED": "yes"}
    return subprocess.run(
        [sys.executable, "-m", "tests.failing_writes", *arguments], env=environment, check=False
    ).returncode


def run_command(name: str, failed_calls: Path | None, error_number: int = 0) -> None:
    """Runs `alfine run job.yaml --name NAME` in this process and ends it. The first write that is not in the file
    `failed_calls` fails with `error_number` and is added to the file."""
    if failed_calls is not None:
        work, calls = str(Path("work").resolve()), str(failed_calls.resolve())
        ctypes.CDLL(None).start_failing(work.encode(), calls.encode(), error_number)
    os.environ["ALFINE_CACHE"] = str(Path("work", f"cache-{name}").resolve())
    os.chdir("work")
    try:
        cli_main.main(["run", "job.yaml", "--name", name], prog_name="alfine")
    except SystemExit as end:
        sys.stdout.flush()
        failures = ctypes.CDLL(None).fails_so_far() if failed_calls is not None else 0
        # The exit code is the command's, plus 40 if a write has failed.
        os._exit(int(end.code or 0) + 40 * failures)


def check_files(folder: Path) -> None:
    """Raises AssertionError for a file under its final name that cannot be read."""
    for path in folder.rglob("*"):
        # training/ holds temporary files of Ludwig, which the next start writes again.
        if not path.is_file() or any(
            part in str(path) for part in (".partial", ".unpacking", "/training/", "/.", "/tmp")
        ):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            elif path.suffix == ".safetensors":
                with safe_open(path, "numpy") as file:
                    [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
            elif path.suffix == ".arrow":
                open_split(path.parent, path.stem)
        except Exception as error:
            raise AssertionError(f"{path} cannot be read: {error!r}") from error


def start(name: str, failed_calls: Path, error_number: int) -> int:
    """Starts the command once. Returns 0 if no write failed, 40 if it ended although one failed (the write was not
    needed), 41 if it stopped with one line."""
    log = Path("log")
    log.unlink(missing_ok=True)
    exit_code = run_in_child(lambda: run_command(name, failed_calls, error_number))
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    text = "\n".join(lines[-30:])
    assert exit_code in (0, 40, 41), f"{name}: exit code {exit_code}\n{text}"
    assert "Traceback" not in text, text
    if exit_code == 41:
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and ERROR_MESSAGES[error_number] in errors[0].lower(), text
    return int(exit_code)


def check_result(expected: dict[str, Any], actual: dict[str, Any], failed_calls: Path) -> None:
    last = failed_calls.read_text(encoding="utf-8").splitlines()[-1]
    assert actual == expected, f"another result after a failure of {last!r}: {differences(expected, actual)}"


def run_trials(first: int | None, num_single: int, log: Callable[[str], None]) -> None:
    """Runs the trials of the module's docstring. Raises AssertionError for an unreadable file or another result."""
    warnings.filterwarnings("ignore", message=".*use of fork")
    for name in IMPORTED:
        importlib.import_module(name)
    Path("work").mkdir()
    working_folder = os.getcwd()
    os.chdir("work")
    assert run_in_child(lambda: make_project(False)) == 0, Path("log").read_text()
    os.chdir(working_folder)
    assert run_in_child(lambda: run_command("uninterrupted", None)) == 0, Path("log").read_text()
    expected = result_of(Path("work/runs/uninterrupted"))
    failed_calls, num_failures, exit_codes = Path("failed_calls"), 0, Counter[int]()
    while num_failures != first:
        error_number = list(ERROR_MESSAGES)[num_failures % 2]
        exit_codes[exit_code := start("repeated", failed_calls, error_number)] += 1
        check_files(Path("work"))
        if not exit_code:
            break
        num_failures += 1
        if exit_code == 40:
            # The command ended in spite of the failure; the writes after that one are reached by a new run.
            check_result(expected, result_of(Path("work/runs/repeated")), failed_calls)
            shutil.rmtree("work/runs/repeated")
            shutil.rmtree("work/cache-repeated")
    assert run_in_child(lambda: run_command("repeated", None)) == 0, Path("log").read_text()
    check_result(expected, result_of(Path("work/runs/repeated")), failed_calls)
    calls = failed_calls.read_text(encoding="utf-8").splitlines()
    kinds = Counter(call.split()[0] for call in calls)
    log(
        f"{len(calls)} writes failed once each: {exit_codes[41]} stopped with one line, {exit_codes[40]} were not "
        f"needed; same result"
    )
    log("  " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    rng = random.Random(0)
    for index, failing_call in enumerate(rng.sample(calls, min(num_single, len(calls)))):
        name = f"single{index}"
        other_calls = Path(f"failed_calls-{name}")
        other_calls.write_text(
            "".join(f"{call}\n".replace("repeated", name) for call in calls if call != failing_call), encoding="utf-8"
        )
        while start(name, other_calls, rng.choice(list(ERROR_MESSAGES))):
            check_files(Path("work"))
        check_result(expected, result_of(Path("work/runs") / name), other_calls)
    if num_single:
        log(f"{min(num_single, len(calls))} of them failed as the only one, each in a new run: same result")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int)
    parser.add_argument("--single", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "ALFINE_PRELOADED" not in os.environ:
            return run_preloaded(sys.argv[1:], Path(folder))
        os.chdir(folder)
        run_trials(arguments.first, arguments.single, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
