"""Every write of a run made to fail once, with a full disk and a failing one in turn: nothing is lost, nothing half-written is
taken for whole, and the same command, given again and again, ends with what the undisturbed run ends with.

    python -m tests.failing_writes [--first N] [--each N]

The run goes through a library in C, preloaded, since Python, Rust and Arrow all write through libc: creating, writing, flushing,
renaming a file, making a folder, in the run's folder and in the cache. The command is started until it gets through without a
failure; each start fails at the first write that has not failed before (with --first, until N have). With --each, N of those writes, drawn
at random, also fail alone, each in a run of its own from an empty folder.
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

from tests.fault_injection import IMPORTED, differences, in_a_child, make_project, outcome

SHIM = Path(__file__).with_suffix(".c")
ERRORS = {errno.ENOSPC: "no space left on device", errno.EIO: "input/output error"}


def preloaded(arguments: list[str], folder: Path) -> int:
    """This program again, with the library in front of libc. Its exit code."""
    library = folder / "failing_writes.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl", "-lpthread"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "ALFINE_PRELOADED": "yes"}
    return subprocess.run(
        [sys.executable, "-m", "tests.failing_writes", *arguments], env=environment, check=False
    ).returncode


def command(name: str, keys: Path | None, how: int = 0) -> None:
    """`alfine run job.yaml --name NAME` in this process; ends it."""
    if keys is not None:
        ctypes.CDLL(None).arm(str(Path("work").resolve()).encode(), str(keys.resolve()).encode(), how)
    os.environ["ALFINE_CACHE"] = str(Path("work", f"cache-{name}").resolve())
    os.chdir("work")
    from pipelines.cli import main

    try:
        main.main(["run", "job.yaml", "--name", name], prog_name="alfine")
    except SystemExit as end:
        sys.stdout.flush()
        failures = ctypes.CDLL(None).fails_so_far() if keys is not None else 0
        # 0 and 1 as they are; +40 says that a write has failed.
        os._exit(int(end.code or 0) + 40 * failures)


def whole_files(folder: Path) -> None:
    """Raises AssertionError for a file that stands under its final name and cannot be read."""
    from safetensors import safe_open

    from pipelines.data.tokenize_rows import open_split

    for path in folder.rglob("*"):
        # training/ is scratch, Ludwig's own files among it, which a new start writes anew.
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
            raise AssertionError(f"{path} is not whole: {error!r}") from error


def start(name: str, keys: Path, how: int) -> int:
    """One start. 0: ended; 40: ended, though a write failed (it was not needed); 41: stopped with one clear line."""
    log = Path("log")
    log.unlink(missing_ok=True)
    ended = in_a_child(lambda: command(name, keys, how))
    last = log.read_text(encoding="utf-8").strip().splitlines()
    text = "\n".join(last[-30:])
    assert ended in (0, 40, 41), f"{name}: exit code {ended}\n{text}"
    assert "Traceback" not in text, text
    if ended == 41:
        errors = [line for line in last if line.startswith("error: ")]
        assert len(errors) == 1 and ERRORS[how] in errors[0].lower(), text
    return int(ended)


def same(expected: dict[str, Any], found: dict[str, Any], keys: Path) -> None:
    last = keys.read_text(encoding="utf-8").splitlines()[-1]
    assert found == expected, f"behind a failure of {last!r} it ended otherwise: {differences(expected, found)}"


def trials(first: int | None, each: int, say: Callable[[str], None]) -> None:
    warnings.filterwarnings("ignore", message=".*use of fork")
    for name in IMPORTED:
        importlib.import_module(name)
    Path("work").mkdir()
    before = os.getcwd()
    os.chdir("work")
    assert in_a_child(lambda: make_project(False)) == 0, Path("log").read_text()
    os.chdir(before)
    assert in_a_child(lambda: command("whole", None)) == 0, Path("log").read_text()
    expected = outcome(Path("work/runs/whole"))
    keys, number, ended = Path("keys"), 0, Counter[int]()
    while number != first:
        how = list(ERRORS)[number % 2]
        ended[code := start("often", keys, how)] += 1
        whole_files(Path("work"))
        if not code:
            break
        number += 1
        if code == 40:
            # It got through all the same: the writes behind that one are reached by a run from the start.
            same(expected, outcome(Path("work/runs/often")), keys)
            shutil.rmtree("work/runs/often")
            shutil.rmtree("work/cache-often")
    assert in_a_child(lambda: command("often", None)) == 0, Path("log").read_text()
    same(expected, outcome(Path("work/runs/often")), keys)
    calls = keys.read_text(encoding="utf-8").splitlines()
    kinds = Counter(call.split()[0] for call in calls)
    say(
        f"{len(calls)} writes failed once each: {ended[41]} stopped with one line, {ended[40]} were not needed; the same end"
    )
    say("  " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    draw = random.Random(0)
    for which, chosen in enumerate(draw.sample(calls, min(each, len(calls)))):
        name = f"alone{which}"
        others = Path(f"keys-{name}")
        others.write_text(
            "".join(f"{call}\n".replace("often", name) for call in calls if call != chosen), encoding="utf-8"
        )
        while start(name, others, draw.choice(list(ERRORS))):
            whole_files(Path("work"))
        same(expected, outcome(Path("work/runs") / name), others)
    if each:
        say(f"{min(each, len(calls))} of them failed alone, in a run of its own: the same end")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int)
    parser.add_argument("--each", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "ALFINE_PRELOADED" not in os.environ:
            return preloaded(sys.argv[1:], Path(folder))
        os.chdir(folder)
        trials(given.first, given.each, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
