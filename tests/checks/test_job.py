"""`alfine check` from the config to its output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.checks.job import check_job
from pipelines.config import optional_packages
from pipelines.config.job import load_job
from pipelines.errors import ConfigError
from tests.checks.labeled_jobs import GOOD_ROWS, write_job


def test_check_imports_no_heavy_library(tmp_path: Path) -> None:
    """The metric is tried and the labels are counted without a library that takes seconds."""
    path = write_job(tmp_path, GOOD_ROWS)
    code = (
        "import sys; from click.testing import CliRunner; from pipelines.cli import main; "
        f"assert CliRunner().invoke(main, ['check', {str(path)!r}]).exit_code == 0; "
        "print([name for name in ('torch', 'ludwig', 'nltk', 'sacrebleu') if name in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_a_missing_package_is_found_before_the_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional_packages, "installed_version", lambda name: None)
    job = load_job(write_job(tmp_path, GOOD_ROWS), ["trainer.optimizer.type=adamw_8bit"])
    with pytest.raises(ConfigError, match="requires the package bitsandbytes, which is not installed"):
        check_job(job)
