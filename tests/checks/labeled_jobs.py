"""Jobs over rows with given labels, checked by `alfine check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from pipelines.cli import main


def write_job(folder: Path, labels: Sequence[tuple[str, str]], forgetting: Any = "none", **task: Any) -> Path:
    """Writes a config with one task over rows with these splits and labels."""
    rows = [{"q": f"q{index}", "a": label, "split": split} for index, (split, label) in enumerate(labels)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {
        "t": {"data": str(folder / "rows.jsonl"), "prompt": "{q}", "completion": "{a}", "metric": "exact_match", **task}
    }
    config = {
        "base_model": "smollm2-135m-instruct",
        "adapter": {"type": "lora"},
        "trainer": {"type": "finetune"},
        "pipeline": {"tasks": tasks, "forgetting": forgetting},
    }
    (folder / "job.yaml").write_text(json.dumps(config))
    return folder / "job.yaml"


def check(path: Path) -> tuple[int, str]:
    """The exit code and standard error of `alfine check`."""
    result = CliRunner().invoke(main, ["check", str(path)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stderr


def labeled_rows(train: str, test: str) -> list[tuple[str, str]]:
    return [*(("train", label) for label in train.split()), *(("test", label) for label in test.split())]


GOOD_ROWS = labeled_rows("a b a b", "a b")
