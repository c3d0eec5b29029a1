"""Every shipped config loads, opens with the command that runs it, and names files that are there."""

from pathlib import Path

import pytest

from pipelines.config.job import load_job
from pipelines.data.examples import load_examples

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "ludwig_configs").glob("*.yaml"))


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} >= {
        "quickstart",
        "instruction",
        "conversations",
        "full_finetune",
        "gpu_lora",
        "gpu_qlora",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    job = load_job(path.relative_to(ROOT))
    assert list(load_examples(job.pipeline))
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"alfine run ludwig_configs/{path.name} --name" in line and "=" in line for line in comments)
    assert any("make finetune" in line for line in comments)
    assert str(path.name) in (ROOT / "README.md").read_text(encoding="utf-8")
