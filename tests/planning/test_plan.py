"""The plan as a user sees it: the command, the edits that make a job fit, the hardware, the record of a run."""

import json
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.config.hardware import HardwareSettings
from pipelines.config.job import load_job
from pipelines.planning.duration import format_duration
from pipelines.planning.plan import make_plan
from pipelines.planning.target_hardware import GPUS, TargetHardware, find_hardware
from pipelines.storage.sizes import format_bytes


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    from tests.tiny import make_model

    folder = tmp_path_factory.mktemp("job")
    base = make_model(folder / "base", max_position_embeddings=4096)
    rows = [{"text": "tea " * (20 + index % 50), "label": ["yes", "no"][index % 2]} for index in range(100)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"data": str(folder / "rows.jsonl"), "prompt": "{text}", "completion": "{label}", "metric": "exact_match"}
    job = {
        "pipeline": {"tasks": {"t": task}, "forgetting": "none"},
        "base_model": str(base),
        "trainer": {"type": "finetune", "epochs": 1, "batch_size": 16},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def gpu(size):
    return TargetHardware("a GPU", "cuda", int(size), 1e12, 1e11, "bf16")


def test_a_plan_needs_no_torch(config):
    code = f"""import sys
from pipelines.cli import main
try: main(["plan", {str(config)!r}])
except SystemExit as end: print(end.code, "torch" in sys.modules)"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "0 False"


def test_the_command_prints_three_lines_and_tables(config):
    result = CliRunner().invoke(main, ["plan", str(config), "--gpu", "t4"])
    assert result.exit_code == 0, result.output
    for text in (
        "work: 80 training rows",
        "5 steps of 16 rows",
        "fits into",
        "optimizer state",
        "cache of keys",
        "together",
    ):
        assert text in " ".join(result.output.split())


def test_an_unknown_gpu_is_one_line(config):
    result = CliRunner().invoke(main, ["plan", str(config), "--gpu", "h10"])
    assert result.exit_code == 2
    assert "did you mean h100" in result.output


def test_precision_of_the_config_applies():
    assert find_hardware("NVIDIA H100 80GB HBM3", HardwareSettings()) == GPUS["h100"]
    assert find_hardware("h100", HardwareSettings(dtype="fp32")).bytes_per_value == 4


def test_edits_make_a_job_fit_and_keep_the_step(config):
    job = load_job(config)
    free = make_plan(job, gpu(1e12))
    assert free.fits and not free.edits
    fixed = free.memory.peak - free.memory.training["activations"]
    tight = make_plan(job, gpu((fixed + free.memory.training["activations"] / 4) / 0.95))
    assert not tight.fits
    peaks = [edit.peak for edit in tight.edits]
    assert peaks == sorted(peaks) and all(peak <= tight.available for peak in peaks)
    for edit in tight.edits:
        edited = make_plan(load_job(config, edit.overrides), gpu(tight.hardware.memory))
        assert edited.fits and edited.memory.peak == edit.peak
        if not any("max_sequence_length" in override for override in edit.overrides):
            assert edited.workload.rows_per_step == 16


def test_a_job_that_no_edit_makes_fit_says_so(config):
    assert make_plan(load_job(config), gpu(1000)).edits == []


def test_more_memory_is_needed_by_full_fine_tuning_than_by_lora(config):
    full = make_plan(load_job(config), gpu(1e12)).memory
    lora = make_plan(load_job(config, ["adapter.type=lora"]), gpu(1e12)).memory
    assert lora.training["optimizer state"] < full.training["optimizer state"] / 4
    assert lora.training["gradients"] < full.training["gradients"]


def test_batch_auto_fills_the_memory(config):
    job = load_job(config, ["trainer.batch_size=auto", "trainer.effective_batch_size=80"])
    small, large = make_plan(job, gpu(9.02e8)), make_plan(job, gpu(64e9))
    assert small.memory.micro_batch_tokens < large.memory.micro_batch_tokens


def test_longer_trainings_take_longer(config):
    one, four = (make_plan(load_job(config, [f"trainer.epochs={n}"]), GPUS["t4"]).duration for n in (1, 4))
    assert four.stages["train"] > one.stages["train"]
    assert four.stages["eval_base"] == one.stages["eval_base"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (12_000, "3 h 20 min"), (187_200, "2 days 4 h")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 kB"), (2_500_000, "2.5 MB"), (538_000_000, "538 MB"), (1.45e9, "1.4 GB"), (-2e9, "-2.0 GB")],
)
def test_sizes(size, text):
    assert format_bytes(size) == text
