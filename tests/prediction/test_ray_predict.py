"""`predict --ray`: rows are completed in several processes, and the output is that of one."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from tests.jobs import run


@pytest.fixture
def ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[train]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    yield ray
    ray.shutdown()


@pytest.mark.ludwig
def test_ray_writes_the_same_bytes(project, ray):
    run()
    rows = [{"q": f"is {n} odd " * (1 + n % 5)} for n in range(5 * 512 + 7)]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, options in {"local": (), "ray": ("--ray", "--workers", "2")}.items():
        words = ["predict", "runs/one", "new.jsonl", "--task", "odd", "--output", f"{name}.jsonl", *options]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    assert Path("ray.jsonl").read_bytes() == Path("local.jsonl").read_bytes()
    words = ["predict", "runs/one", "new.jsonl", "--task", "odd", "--ray", "--workers", "99"]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, "--workers requests 99 × 1 CPU, this machine has 2" in result.stderr) == (2, True)
