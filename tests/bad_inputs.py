"""Runs the bad inputs and writes docs/bad_inputs.md, which shows what the command line prints for each.

    python -m tests.bad_inputs

test_bad_inputs.py fails if the page is out of date.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import CliRunner

from pipelines.cli import main
from tests.bad_configs import GOOD as GOOD_CONFIG
from tests.bad_input_cases import CASES
from tests.bad_input_cases.case import CHECK, Case
from tests.config.mistakes import MISTAKES

PAGE = Path(__file__).parents[1] / "docs" / "bad_inputs.md"
PROGRESS = re.compile(r"^(?!error: ).*(: started|: done in \d|: interrupted after \d| so far|still running)")


@dataclass(frozen=True)
class Outcome:
    """The output and the new files of a command.

    lines: the lines of stderr, without those on progress.
    new_files: files that the command created.
    exception: an exception that the command did not handle.
    """

    exit_code: int
    lines: list[str]
    new_files: list[str]
    exception: BaseException | None


def run_case(case: Case) -> Outcome:
    """Runs the command of a case in a temporary folder."""
    files: dict[str, str | bytes | None] = {"job.yaml": case.config, "rows.jsonl": case.rows, **case.others}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        _raise_on_write(case.fault),
        mock.patch.dict(os.environ, case.environment),
    ):
        for name, content in files.items():
            if content is not None:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for name, target in case.links.items():
            Path(name).symlink_to(target)
        result = CliRunner().invoke(main, case.command if isinstance(case.command, list) else case.command.split())
        new_files = sorted(
            str(path) for path in Path().rglob("*") if path.is_file() and str(path) not in {**files, **case.links}
        )
    exception = None if isinstance(result.exception, SystemExit) else result.exception
    lines = [line for line in result.stderr.splitlines() if line and not PROGRESS.search(line)]
    return Outcome(result.exit_code, lines, new_files, exception)


@contextlib.contextmanager
def _raise_on_write(error: OSError | None) -> Iterator[None]:
    """Makes every write of a file, or every creation of a folder, raise `error`."""
    if error is None:
        yield
        return

    def fail(*_: Any, **__: Any) -> None:
        raise error

    # Files are written with fsync, folders are created with mkdir.
    function = "mkdir" if isinstance(error, PermissionError) else "fsync"
    with mock.patch.object(os, function, fail), mock.patch("shutil.disk_usage", lambda _: mock.Mock(free=0)):
        yield


def changed_lines(config: str | bytes) -> str:
    """The lines that differ from those of the valid config."""
    if isinstance(config, bytes):
        return repr(config)[:60] + "…"
    valid_lines = GOOD_CONFIG.splitlines()
    different = [line.strip() for line in config.splitlines() if line not in valid_lines] or config.splitlines()
    return " ⏎ ".join(line if len(line) < 90 else line[:87] + "…" for line in different[:4])


def table_cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    printable = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    for character, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("`", "\\`")):
        printable = printable.replace(character, escaped)
    return printable


def page() -> str:
    """docs/bad_inputs.md as Markdown."""
    lines = [
        "# Error message reference",
        "",
        "The tests run every row: each error is one line on stderr (a note may follow on what was detected in a data "
        "file), and no partial file is left. "
        "Exit code 2 is an error of the user, 1 of the system.",
        "",
        "Written by `python -m tests.bad_inputs`.",
        "",
        "## Rows, models, retention evals, commands",
        "",
        "| error | command | output | exit code |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        outcome = run_case(case)
        command = case.command if isinstance(case.command, str) else " ".join(word or "''" for word in case.command)
        output = "<br>".join(map(table_cell, outcome.lines))
        lines.append(f"| {case.title} | `alfine {command}` | {output} | {outcome.exit_code} |")
    lines += [
        "",
        "## The config",
        "",
        "Each row is one change of this config, then `alfine check job.yaml`; the exit code is always 2.",
        "",
        "```yaml",
        GOOD_CONFIG.rstrip(),
        "```",
        "",
        "| error | changed lines | output |",
        "|---|---|---|",
    ]
    for title, (config, _, _) in MISTAKES.items():
        outcome = run_case(Case(title, CHECK, config=config))
        assert outcome.exit_code == 2 and outcome.lines, title
        output = "<br>".join(map(table_cell, outcome.lines))
        lines.append(f"| {title} | {table_cell(changed_lines(config))} | {output} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
