"""Sweeps: the trials of each variant, and a sweep of a tiny model."""

import json
from pathlib import Path

import pytest

from pipelines.config.job import load_job
from pipelines.errors import ConfigError
from pipelines.report.sweep import VALIDATION_EVAL, read_sweep, write_sweep_report
from pipelines.storage.run_folder import Run
from pipelines.sweep import SweepRunner, _losses, make_trials, parse_variants
from tests.jobs import QUIET


def test_the_baseline_is_always_a_variant():
    assert parse_variants("ewc, none,ewc") == ["none", "ewc"]


def test_an_unknown_strategy():
    with pytest.raises(ConfigError, match="unknown strategy 'ecw'; did you mean ewc"):
        parse_variants("none,ecw")


def test_the_trials_of_a_variant(project):
    job = load_job(Path("job.yaml"))

    def hyperparameters(variant):
        return [trial.hyperparameter for trial in make_trials(job, variant, 2)]

    assert hyperparameters("none") == ["learning_rate: 0.01", "learning_rate: 0.003"]
    assert hyperparameters("full") == ["learning_rate: 0.001", "learning_rate: 0.0003"]
    assert hyperparameters("replay+distill") == ["replay.fraction: 0.05", "replay.fraction: 0.1"]
    (trial,) = make_trials(job, "full", 1)
    assert trial.overrides[0] == "adapter=null" and trial.run_name(3) == "full-learning_rate-0.001-seed3"


def test_the_validation_loss_of_the_base_does_not_count(tmp_path):
    for folder in ("model", "retention"):
        (tmp_path / folder).mkdir()
    losses = [{"step": 0, "loss": 1.0}, {"step": 5, "loss": 3.0}, {"step": 9, "loss": 2.0}]
    (tmp_path / "model" / "training.json").write_text(json.dumps({"validation_loss": losses}))
    record = {"eval": VALIDATION_EVAL, "kind": "text_nll", "item": 1, "score": 4.0}
    (tmp_path / "retention" / "tuned.jsonl").write_text(json.dumps(record) + "\n")
    assert _losses(Run(tmp_path)) == (2.0, 4.0)


@pytest.mark.ludwig
def test_a_sweep_runs_every_trial_once_and_recommends_a_variant(project, monkeypatch):
    for name in ("evaluation", "validation"):
        lines = [json.dumps({"text": f"{name}: the inn at nine {index}"}) + "\n" for index in range(8)]
        Path(f"{name}.jsonl").write_text("".join(lines))
    config = json.loads(Path("job.yaml").read_text())
    config["pipeline"]["forgetting"]["evals"] = {"text": {"kind": "text_nll", "data": "evaluation.jsonl"}}
    Path("job.yaml").write_text(json.dumps(config))
    monkeypatch.setattr("pipelines.sweep.bundled_file", lambda name: Path("validation.jsonl"))
    folder = Path("runs/sweep")
    runner = SweepRunner(Path("job.yaml"), (), folder, QUIET)
    runner.run(["none", "l2sp"], num_seeds=2, num_trials=2)
    sweep = write_sweep_report(folder)
    assert [variant.strategy for variant in sweep.variants] == ["none", "l2sp"]
    assert sweep.recommended in ("none", "l2sp") and sweep.variant("none").text_loss_increase.vs_baseline == 0
    runs = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert len(runs) == 6  # per variant: two trials with the first seed, the better one with the second
    page = (folder / "sweep.html").read_text()
    assert sweep.headline in page and "<svg" in page
    manifest = (folder / runs[0] / "manifest.json").read_text()
    runner.run(["none", "l2sp"], num_seeds=2, num_trials=2)
    assert json.loads((folder / runs[0] / "manifest.json").read_text())["stages"] == json.loads(manifest)["stages"]
    assert read_sweep(folder) == sweep
