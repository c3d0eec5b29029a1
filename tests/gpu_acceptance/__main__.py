"""Runs one part of the checks. See the docstring of the package."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

STARTED = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_acceptance")
    parser.add_argument("--part", type=int, choices=(1, 2, 3), required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_acceptance"), help="the folder of the results")
    parser.add_argument(
        "--seconds", type=float, help="checks that no longer fit are skipped (default 220; no limit on a CPU)"
    )
    parser.add_argument("--checks", help="only these checks, separated by commas")
    parser.add_argument("--work", type=Path, help="scratch folder; its models are used again")
    parser.add_argument("--after", help="only the checks after this one (used after an error that disables the GPU)")
    args = parser.parse_args()
    args.seconds = args.seconds or (220.0 if args.device == "cuda" else 3600.0)
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    work = (args.work or Path(tempfile.mkdtemp(prefix="gpu_acceptance_"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"ALFINE_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.exit(run(args, work))


def run(args: argparse.Namespace, work: Path) -> int:
    # torch and transformers, after the environment is set
    from tests.gpu_acceptance.all_checks import CHECKS
    from tests.gpu_acceptance.registry import Context
    from tests.gpu_acceptance.results import RESULTS, free_memory, run_check, write_tables

    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    context = Context(args.device, work, deadline=STARTED + args.seconds)
    checks = [check for check in CHECKS if check.part == args.part]
    if args.checks:
        checks = [check for check in checks if check.name in args.checks.split(",")]
    if args.after:
        checks = checks[[check.name for check in checks].index(args.after) + 1 :]
    failed = False
    for check in checks:
        failed |= run_check(check, context, out / RESULTS)["status"] in ("failed", "error")
        if not free_memory():
            _continue_in_new_process(args, work, out, check.name, context.seconds_left)
    write_tables(out, CHECKS)
    return int(failed)


def _continue_in_new_process(args: argparse.Namespace, work: Path, out: Path, after: str, seconds: float) -> None:
    """An illegal memory access, for example, makes every further call of CUDA fail in this process."""
    command = [sys.executable, "-m", "tests.gpu_acceptance", "--part", str(args.part), "--device", args.device]
    command += ["--out", str(out), "--work", str(work), "--seconds", str(seconds), "--after", after]
    command += ["--checks", args.checks] if args.checks else []
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
