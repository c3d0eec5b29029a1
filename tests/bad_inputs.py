"""Bad inputs as a user would make them, and what the command line prints for each.

`python -m tests.bad_inputs` writes docs/bad_inputs.md again; test_bad_inputs.py fails while page and program differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import CliRunner

from pipelines.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "bad_inputs.md"

GOOD = """\
pipeline:
  tasks:
    reviews:
      data: rows.jsonl
      prompt: "Positive or negative?\\n{review}"
      completion: "{label}"
      metric: label
base_model: smollm2-135m-instruct
adapter: {type: lora}
trainer: {type: finetune, epochs: 1}
"""
ROWS = "".join(
    json.dumps({"review": f"Cup number {n} is {'fine' if n % 2 else 'cracked'}.", "label": "good" if n % 2 else "bad"}) + "\n"
    for n in range(20)
)


@dataclass(frozen=True)
class Case:
    """Files in an empty folder, a command in it; `fault` is what the machine does wrong, for no other cause."""

    title: str
    command: str
    config: str | bytes | None = GOOD
    rows: str | bytes | None = ROWS
    others: dict[str, str | bytes] = field(default_factory=dict)
    fault: OSError | None = None


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def forgetting(value: str) -> str:
    return GOOD.replace("  tasks:", f"  forgetting: {value}\n  tasks:")


MANIFEST = json.dumps({"format_version": 1, "config": "other.yaml", "stages": {}})
CHECK, RUN = "check job.yaml", "run job.yaml --name mine"
CASES = [
    Case("missing config", CHECK, config=None),
    Case("config is not UTF-8", CHECK, config=GOOD.replace("Positive", "Café").encode("latin-1")),
    Case("broken YAML", CHECK, config=changed("metric: label", "metric: [label")),
    Case("tab in YAML", CHECK, config=changed("  tasks:", "\ttasks:")),
    Case("empty config", CHECK, config=""),
    Case("unknown key, top level", CHECK, config=changed("base_model:", "basemodel:")),
    Case("unknown key in trainer", CHECK, config=changed("epochs: 1", "epochs: 1, lerning_rate: 0.1")),
    Case("unknown key, deep", CHECK, config=changed("epochs: 1", "learning_rate_scheduler: {warmup: 0.1}")),
    Case("unknown key in a task", CHECK, config=changed("metric:", "metrics:")),
    Case("wrong type", CHECK, config=changed("epochs: 1", "epochs: many")),
    Case("wrong type in pipeline", CHECK, config=changed("metric: label", "metric: label\n      max_new_tokens: few")),
    Case("several mistakes", CHECK, config=changed("epochs: 1", "epochs: many, lerning_rate: 1").replace("metric:", "metrics:")),
    Case("override of an unknown key", "run job.yaml trainer.epoch=2"),
    Case("unknown metric", CHECK, config=changed("metric: label", "metric: rogue")),
    Case("own metric that is not there", CHECK, config=changed("metric: label", "metric: mine:score")),
    Case("unknown base model", RUN, config=changed("smollm2-135m-instruct", "smolm2-135m-instruct")),
    Case("base model is an empty folder", RUN, config=changed("smollm2-135m-instruct", "./model"), others={"model/x": ""}),
    Case("data file missing", CHECK, rows=None),
    Case("data file is not UTF-8", CHECK, rows=ROWS.replace("fine", "schön").encode("latin-1")),
    Case("JSON broken at a line", CHECK, rows=ROWS.replace('cracked."', 'cracked.', 1)),
    Case("JSON line without an object", CHECK, rows=ROWS + "[1, 2]\n"),
    Case(
        "CSV with a ragged row", CHECK, config=changed("rows.jsonl", "rows.csv"), rows=None,
        others={"rows.csv": "review,label\nGood cup,good\nBad, very bad cup,bad\n"},
    ),
    Case("Parquet that is none", CHECK, config=changed("rows.jsonl", "rows.parquet"), rows=None, others={"rows.parquet": "x"}),
    Case("data in a form not read", CHECK, config=changed("rows.jsonl", "rows.xlsx"), rows=None, others={"rows.xlsx": "x"}),
    Case("missing column", CHECK, config=changed("{review}", "{text}")),
    Case("no rows", CHECK, rows=""),
    Case("one row", CHECK, rows=ROWS.split("\n")[0] + "\n"),
    Case("a row of 100 kB", "preview job.yaml", rows=ROWS + json.dumps({"review": "word " * 20_000, "label": "good"}) + "\n"),
    Case("a row without a value", CHECK, rows=ROWS + '{"review": null, "label": "good"}\n'),
    Case("unknown split", CHECK, rows=ROWS + '{"review": "Fine.", "label": "good", "split": "dev"}\n'),
    Case("unknown strategy", CHECK, config=forgetting("ecw")),
    Case("a strategy's knob misspelt", CHECK, config=forgetting("{strategy: ewc, ewc: {strenght: 3}}")),
    Case("knobs of a strategy that is not used", CHECK, config=forgetting("{strategy: ewc, si: {strength: 3}}")),
    Case("guard without rows", CHECK, config=forgetting("{guards: {mine: {kind: text, data: none.jsonl}}}"), others={"none.jsonl": ""}),
    Case("guard of another form", CHECK, config=forgetting("{guards: {mine: {kind: choices, data: rows.jsonl}}}")),
    Case("budget already spent", CHECK, config=forgetting("{every: 10, budget: {text: 0}}")),
    Case("gate on no guard", CHECK, config=GOOD.replace("  tasks:", "  report: {gates: {txt: {greatest_loss: 1}}}\n  tasks:")),
    Case("going on from no run", RUN, config=GOOD.replace("  tasks:", "  after: runs/first\n  tasks:")),
    Case("bake-off of an unknown strategy", "bakeoff job.yaml --strategies none,ecw"),
    Case("name with a slash", "run job.yaml --name a/b"),
    Case("run folder of another config", RUN, others={"runs/mine/manifest.json": MANIFEST}),
    Case("damaged manifest", RUN, others={"runs/mine/manifest.json": "{"}),
    Case("report of no run", "report runs/none"),
    Case("predict with a run that has no model", "predict runs/mine rows.jsonl", others={"runs/mine/manifest.json": MANIFEST}),
    Case("no disk space", RUN, fault=OSError(28, "No space left on device", "runs/mine/config.yaml.partial")),
    Case("no write permission", RUN, fault=PermissionError(13, "Permission denied", "runs/mine")),
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    lines: list[str]
    left: list[str]
    """Files that the command left, beside the ones that it was given."""
    exception: BaseException | None


def outcome(case: Case) -> Outcome:
    """Runs the case in a folder of its own."""
    files: dict[str, str | bytes | None] = {"job.yaml": case.config, "rows.jsonl": case.rows, **case.others}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), _fault(case.fault):
        for name, content in files.items():
            if content is not None:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        result = CliRunner().invoke(main, case.command.split())
        left = sorted(str(path) for path in Path().rglob("*") if path.is_file() and str(path) not in files)
    exception = None if isinstance(result.exception, SystemExit) else result.exception
    lines = [line for line in result.stderr.splitlines() if line and not line.startswith("✓")]  # ✓: what was done before
    return Outcome(result.exit_code, lines, left, exception)


@contextlib.contextmanager
def _fault(error: OSError | None) -> Iterator[None]:
    if error is None:
        yield
        return

    def fails(*_: Any, **__: Any) -> None:
        raise error

    # Whole files are written through fsync, folders made through mkdir.
    what = "mkdir" if isinstance(error, PermissionError) else "fsync"
    with mock.patch.object(os, what, fails), mock.patch("shutil.disk_usage", lambda _: mock.Mock(free=0)):
        yield


def page() -> str:
    """The table as Markdown."""
    lines = [
        "# What a mistake prints", "",
        "Every row is run by the tests: one line for each mistake, on stderr, nothing half-written. "
        "Exit code 2 is the user's mistake, 1 the machine's.", "",
        "Written by `python -m tests.bad_inputs`.", "",
        "| what is wrong | command | it prints | exit |", "|---|---|---|---|",
    ]  # fmt: skip
    for case in CASES:
        done = outcome(case)
        printed = "<br>".join(line.replace("|", "\\|").replace("<", "&lt;") for line in done.lines)
        lines.append(f"| {case.title} | `alfine {case.command}` | {printed} | {done.exit_code} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
