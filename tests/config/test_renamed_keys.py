"""Keys and values of earlier versions are errors that name the new ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config.job import load_job
from pipelines.config.renamed_keys import RENAMED
from pipelines.errors import ConfigError
from tests.bad_configs import GOOD

CASES = [
    ("pipeline.after=runs/first", "pipeline.after was renamed to continue_from", "write continue_from: runs/first"),
    ("pipeline.on_nan=skip 3", "pipeline.on_nan was renamed to max_nonfinite_steps", "write max_nonfinite_steps: 3"),
    ("pipeline.on_nan=stop", "pipeline.on_nan was renamed to max_nonfinite_steps", "write max_nonfinite_steps: 0"),
    (
        "pipeline.tasks.sentiment.group=document",
        "sentiment.group was renamed to cluster_by",
        "write cluster_by: document",
    ),
    (
        "pipeline.report.prompts=a.jsonl",
        "report.prompts was renamed to sample_prompts",
        "write sample_prompts: a.jsonl",
    ),
    ("pipeline.report.gates={sentiment: {least_gain: 5}}", "least_gain was renamed to min_gain", "write min_gain: 5"),
    (
        "pipeline.report.gates={text: {greatest_loss: 0.1}}",
        "greatest_loss was renamed to max_drop",
        "write max_drop: 0.1",
    ),
    ("pipeline.report.gates={text: {max_drop: 1, of: value}}", "text.of was renamed to by", "write by: point_estimate"),
    ("pipeline.report.gates={text: {max_drop: 1, of: interval}}", "text.of was renamed to by", "write by: ci"),
    ("pipeline.forgetting={guards: none}", "forgetting.guards was renamed to evals", "write evals: none"),
    (
        "pipeline.forgetting={guards: {g: {kind: kl, data: a}}}",
        "forgetting.guards was renamed to evals",
        "write evals: …",
    ),
    (
        "pipeline.forgetting={evals: {g: {kind: choices, data: a}}}",
        "g.kind: choices was renamed to multiple_choice",
        "write",
    ),
    (
        "pipeline.forgetting={evals: {g: {kind: text, data: a}}}",
        "kind: text was renamed to text_nll",
        "write kind: text_nll",
    ),
    (
        "pipeline.forgetting={evals: {g: {kind: answers, data: a}}}",
        "g.kind: answers was renamed to kl",
        "write kind: kl",
    ),
    ("pipeline.forgetting={evals: {g: {kind: kl, data: a, rows: 5}}}", "g.rows was renamed to limit", "write limit: 5"),
    ("pipeline.forgetting={every: 20}", "forgetting.every was renamed to eval_steps", "write eval_steps: 20"),
    (
        "pipeline.forgetting={eval_steps: 9, budget: {text: 0.1}}",
        "budget was renamed to max_regression",
        "write max_regression: …",
    ),
    (
        "pipeline.forgetting={strategy: ewc, ewc: {strength: 3}}",
        "ewc.strength was renamed to weight",
        "write weight: 3",
    ),
    (
        "pipeline.forgetting={strategy: ewc, ewc: {sequences: 9}}",
        "was renamed to fisher_samples",
        "write fisher_samples: 9",
    ),
    ("pipeline.forgetting={strategy: ewc, ewc: {decay: 1}}", "ewc.decay was renamed to gamma", "write gamma: 1"),
    ("pipeline.forgetting={strategy: si, si: {strength: 3}}", "si.strength was renamed to weight", "write weight: 3"),
    (
        "pipeline.forgetting={strategy: si, si: {warm_steps: 3}}",
        "was renamed to importance_steps",
        "write importance_steps: 3",
    ),
    (
        "pipeline.forgetting={strategy: replay, replay: {share: 0.1}}",
        "share was renamed to fraction",
        "write fraction: 0.1",
    ),
    (
        "pipeline.forgetting={strategy: distill, distill: {strength: 3}}",
        "distill.strength was renamed to weight",
        "write weight: 3",
    ),
    (
        "pipeline.forgetting={strategy: distill, distill: {share: 0.1}}",
        "distill.share was renamed to fraction",
        "write fraction",
    ),
    (
        "pipeline.forgetting={strategy: distill, distill: {rows: tasks}}",
        "rows was renamed to apply_to",
        "write apply_to: task",
    ),
    (
        "pipeline.forgetting={strategy: distill, distill: {rows: replay}}",
        "was renamed to apply_to",
        "write apply_to: general",
    ),
    (
        "pipeline.forgetting={strategy: distill, distill: {rows: both}}",
        "was renamed to apply_to",
        "write apply_to: both",
    ),
    (
        "pipeline.forgetting={strategy: l2sp, l2sp: {strength: 3}}",
        "l2sp.strength was renamed to weight",
        "write weight: 3",
    ),
    (
        "pipeline.forgetting={strategy: interpolate, interpolate: {budget: 1}}",
        "was renamed to max_loss_increase",
        "write",
    ),
    (
        "backend={type: ray, trainer: {shard_base: true}}",
        "trainer.shard_base was renamed to fsdp",
        "write fsdp: frozen",
    ),
    ("backend={type: ray, trainer: {shard_base: false}}", "trainer.shard_base was renamed to fsdp", "write fsdp: null"),
]
"""Override, and two parts of the message."""


@pytest.mark.parametrize(("override", "renamed", "advice"), CASES)
def test_an_old_key_is_one_error_that_names_the_new_one(
    tmp_path: Path, override: str, renamed: str, advice: str
) -> None:
    (tmp_path / "job.yaml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_job(tmp_path / "job.yaml", [override])
    (problem,) = caught.value.problems
    assert renamed in problem.message and advice in problem.message


def test_an_old_key_in_the_file_is_reported_at_its_line(tmp_path: Path) -> None:
    forgetting = ["guards:", "  g:", "    kind: choices", "    data: a.jsonl", "    rows: 5", "every: 3"]
    text = "".join(f"    {line}\n" for line in forgetting)
    path = tmp_path / "job.yaml"
    path.write_text(GOOD.replace("  tasks:", f"  forgetting:\n{text}  tasks:"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert [(problem.line, problem.message.split()[0]) for problem in caught.value.problems] == [
        (3, "pipeline.forgetting.guards"),
        (5, "pipeline.forgetting.evals.g.kind:"),
        (7, "pipeline.forgetting.evals.g.rows"),
        (8, "pipeline.forgetting.every"),
    ]


def test_every_renamed_key_has_a_case() -> None:
    assert all(any(pattern.split(".")[-1] in override for override, _, _ in CASES) for pattern in RENAMED)


def test_both_the_old_and_the_new_key(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_job(tmp_path / "job.yaml", ["pipeline.continue_from=runs/a", "pipeline.after=runs/b"])
    (problem,) = caught.value.problems
    assert "write continue_from: runs/b" in problem.message
