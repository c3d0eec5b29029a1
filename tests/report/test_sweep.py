"""The report of a sweep: measures, the Pareto front, the recommendation and the written files."""

import json
from dataclasses import replace

import pytest

from pipelines.errors import RunError
from pipelines.report.analysis import analyse
from pipelines.report.sweep import VALIDATION_EVAL, _task_gains, read_sweep, write_sweep_report
from pipelines.storage.sweep_records import SweepVariants
from tests.report.run_folder import make_run, write_lines


def add_run(folder, right, text_nll):
    """A run whose tuned model is right on `right` of 20 rows and has this text NLL."""
    make_run(folder, rows=20, base_answer="wrong")
    path = folder / "tuned" / "completions.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [{**record, "completion": "wrong"} if record["row"] >= right else record for record in records])
    for model, nll in (("base", 3.0), ("tuned", text_nll)):
        items = [("text", item, nll + item / 100) for item in range(1, 6)]
        items += [(VALIDATION_EVAL, item, nll + 5) for item in range(1, 4)]
        write_lines(
            folder / "retention" / f"{model}.jsonl",
            [{"eval": name, "kind": "text_nll", "item": item, "score": score} for name, item, score in items],
        )


def write_sweep(folder, results):
    variants = []
    for strategy, (right, text_nll) in results.items():
        for seed in (1, 2):
            add_run(folder / f"{strategy}-seed{seed}", right, text_nll)
        variants.append(
            {
                "strategy": strategy,
                "hyperparameter": "learning_rate: 0.0002" if strategy == "none" else f"{strategy}.weight: 10",
                "runs": [f"{strategy}-seed1", f"{strategy}-seed2"],
                "trials": [],
            }
        )
    plan = SweepVariants(config="job.yaml", seeds=2, num_trials=1, variants=variants)
    (folder / "variants.json").write_text(plan.model_dump_json())
    return folder


def test_the_strategy_that_forgets_least_among_the_non_inferior_is_recommended(tmp_path):
    results = {"none": (18, 3.5), "ewc": (18, 3.1), "l2sp": (10, 3.0), "si": (17, 3.4)}
    sweep = read_sweep(write_sweep(tmp_path, results))
    assert sweep.recommended == "ewc"
    assert sweep.variant("ewc").text_loss_increase.value == pytest.approx(0.1)
    assert sweep.variant("ewc").text_loss_increase.vs_baseline == pytest.approx(-0.4)
    assert sweep.variant("l2sp").gain.vs_baseline == pytest.approx(-40)
    assert [variant.strategy for variant in sweep.variants if variant.pareto_optimal] == ["ewc", "l2sp"]
    assert sweep.yaml_line == "forgetting: {strategy: ewc, ewc: {weight: 10}}"
    assert sweep.headline.startswith("Recommended: ewc (ewc.weight: 10): +90.0 points")


def test_the_baseline_is_recommended_where_no_strategy_beats_it(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path, {"none": (18, 3.1), "ewc": (18, 3.5)}))
    assert sweep.recommended == "none" and sweep.headline.startswith("No strategy beats the baseline")
    assert sweep.yaml_line == "forgetting: none    # under trainer: learning_rate: 0.0002"


def test_every_form_has_the_recommendation_and_every_strategy(tmp_path):
    sweep = write_sweep_report(write_sweep(tmp_path, {"none": (18, 3.5), "ewc": (18, 3.1)}))
    page, comment = (tmp_path / "sweep.html").read_text(), (tmp_path / "sweep.md").read_text()
    report = json.loads((tmp_path / "sweep.json").read_text())
    assert report["headline"] == sweep.headline and report["variants"][1]["text_loss_increase"]["value"] < 0.2
    for form in (page, comment):
        assert sweep.headline in form and "ewc.weight: 10" in form and "learning_rate: 0.0002" in form
    assert "<svg" in page


def test_rows_scored_on_one_model_keep_their_position(tmp_path):
    run = analyse(make_run(tmp_path / "run", rows=4, base_answer="wrong"))
    assert _task_gains(run) == [100, 100, 100, 100]
    second = replace(run.examples[1], tuned_score=None, change="unscored", gain=0.0)
    third = replace(run.examples[2], base_score=None, tuned_score=None, change="unscored", gain=0.0)
    assert _task_gains(replace(run, examples=[run.examples[0], second, third, run.examples[3]])) == [100, 0, 100]


@pytest.mark.parametrize("text", [None, "{", '{"config": "job.yaml"}'])
def test_a_sweep_without_variants_is_an_error(tmp_path, text):
    if text is not None:
        (tmp_path / "variants.json").write_text(text)
    with pytest.raises(RunError, match="no variant of the sweep is finished"):
        read_sweep(tmp_path)
