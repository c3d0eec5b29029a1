"""The model folder of a finished job, up to loading it with PEFT elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipelines.config.job import load_job
from pipelines.errors import ConfigError, RunError
from pipelines.evaluation.evaluator import LocalEvaluator
from pipelines.modeling.adapters import check_matches_training
from pipelines.modeling.equivalence import probe_logits
from pipelines.modeling.loading import load_causal_lm
from pipelines.storage.files import read_jsonl
from pipelines.storage.run_folder import Run
from pipelines.training.train import train
from tests.forgetting.continual_jobs import (  # noqa: F401  # fixtures
    bundled_rows,
    project_with_evals,
    run_second_job,
    write_second_job,
)
from tests.jobs import make_job, project, run, run_training  # noqa: F401  # fixtures
from tests.modeling.adapter_cases import make_biased

pytestmark = pytest.mark.ludwig

LORA = "type: lora, r: 4, dropout: 0.0, target_modules: [q_proj, v_proj]"
STILL = ("trainer.learning_rate=1e-12", "trainer.epochs=1")


@pytest.mark.parametrize(
    "options", ["", ", init_lora_weights: pissa", ", init_lora_weights: olora", ", bias_type: all"]
)
def test_training_with_learning_rate_zero_has_no_drift(project_with_evals, options):  # noqa: F811
    shutil.rmtree("base")
    make_biased(Path("base"))
    still = run("still", f"adapter={{{LORA}{options}}}", *STILL)
    drift = [line["score"] for line in read_jsonl(still.path("retention", "tuned.jsonl")) if line["eval"] == "answers"]
    assert drift and max(map(abs, drift)) < 1e-4
    moved = run(
        "moved",
        f"adapter={{{LORA}{options}}}",
        "pipeline.forgetting.strategy=distill",
        "pipeline.forgetting.eval_steps=1",
        "trainer.learning_rate=0.001",
    )
    history = json.loads(moved.path("model", "training.json").read_text())
    # Before the first step the student is the base, whatever the adapter did to the base's weights.
    assert history["forgetting"][0].get("distill", 0) == pytest.approx(0, abs=1e-4)
    base, tuned = (
        load_causal_lm("base", allow_half_precision=True),
        LocalEvaluator(load_job(Path("job.yaml")), Path("base"), moved.path("model")),
    )
    torch.testing.assert_close(
        probe_logits(load_causal_lm("base", allow_half_precision=True)), base.model_source.logits
    )
    measured = [
        line["score"] for line in read_jsonl(moved.path("retention", "tuned.jsonl")) if line["eval"] == "answers"
    ]
    assert sum(measured) / len(measured) == pytest.approx(history["retention"][-1]["scores"]["answers"], rel=1e-2)
    assert tuned.loaded.has_adapter


def test_pissa_on_a_tied_matrix_is_an_error(make_job):  # noqa: F811
    job, prepared, base = make_job(
        {"type": "lora", "r": 4, "target_modules": ["lm_head"], "init_lora_weights": "olora"}
    )
    with pytest.raises(ConfigError, match="olora subtracts a part of .* tied embedding and output layer"):
        run_training(job, prepared, base)


@pytest.mark.parametrize("adapter", [f"{{{LORA}}}", "null"], ids=["lora", "full"])
def test_the_model_folder_is_portable(project, tmp_path, adapter, monkeypatch):  # noqa: F811
    done = run("one", f"adapter={adapter}", f"base_model={tmp_path / 'base'}")
    folder = done.path("model")
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    noted = json.loads((folder / "training.json").read_text())["probe_losses"]
    assert len(noted) == 31
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(folder, elsewhere / "model")
    shutil.copytree("base", elsewhere / "base")
    expected = probe_logits(LocalEvaluator(load_job(Path("job.yaml")), Path("base"), folder).loaded.model)
    monkeypatch.chdir(elsewhere)
    loaded = (AutoModelForCausalLM if adapter == "null" else AutoPeftModelForCausalLM).from_pretrained(
        "model", dtype=torch.float32
    )
    torch.testing.assert_close(probe_logits(loaded), expected, atol=1e-4, rtol=1e-4)
    assert json.loads(Path("base", "config.json").read_text())["model_type"] == "llama"


def test_a_changed_tuned_model_is_an_error(project):  # noqa: F811
    from pipelines.prediction.models import load_tuned

    done = run("one")
    load_tuned(done, load_job(Path("job.yaml")))
    config = json.loads(done.path("model", "adapter_config.json").read_text())
    done.path("model", "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 4000}))
    with pytest.raises(RunError, match="has other losses than at the end of training"):
        load_tuned(done, load_job(Path("job.yaml")))


def test_module_names_are_checked_before_the_run(project):  # noqa: F811
    with pytest.raises(ConfigError, match="adapter.target_modules: the base has no module v_prj; did you mean v_proj"):
        run("one", "adapter.target_modules=[q_proj, v_prj]")
    assert not Path("runs", "one", "base").exists()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("ewc", "ewc covers LoRA's matrices of linear layers, and model.embed_tokens.lora_embedding_A is trained"),
        ("l2sp", "l2sp covers LoRA's"),
    ],
)
def test_penalties_that_do_not_cover_every_trained_weight_are_errors(project_with_evals, strategy, message):  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        run("one", f"pipeline.forgetting.strategy={strategy}", "adapter.target_modules=[embed_tokens, q_proj]")


def test_penalties_with_frozen_layers(project_with_evals):  # noqa: F811
    for strategy in ("ewc", "si"):
        done = run(
            strategy, f"pipeline.forgetting.strategy={strategy}+distill", "trainer.layers_to_freeze_regex=layers\\.0"
        )
        history = json.loads(done.path("model", "training.json").read_text())
        # Of two layers one is trained: q_proj [32, 32] and v_proj [16, 32] at rank 4.
        assert history["trainable_parameters"] == 4 * (32 + 32) + 4 * (16 + 32)


def test_continuing_from_an_adapter_of_a_tied_head(project_with_evals):  # noqa: F811
    run("one", "adapter.target_modules=[lm_head, q_proj]")
    write_second_job(strategy="none")
    second = run_second_job("two")
    assert json.loads(second.path("start", "config.json").read_text())["tie_word_embeddings"] is False
    said = {
        line["row"]: line["completion"]
        for line in read_jsonl(Path("runs/one/tuned/completions.jsonl"))
        if line["task"] == "say"
    }
    assert [line["completion"] for line in read_jsonl(second.path("base", "completions.jsonl"))] == [
        said[row] for row in said
    ]
    assert (
        check_matches_training(
            LocalEvaluator(load_job(Path("second.yaml")), second.path("start"), second.path("model")).loaded.model,
            second.path("model"),
        )
        is None
    )
    card = second.path("model", "README.md").read_text()
    assert "base_model: one-merged" in card


def test_invalid_generation_settings_of_the_base_do_not_prevent_saving(project):  # noqa: F811
    Path("base", "generation_config.json").write_text(
        json.dumps({"do_sample": False, "temperature": 0.5, "eos_token_id": 2})
    )
    done = run("one", "adapter=null")
    assert json.loads(done.path("model", "generation_config.json").read_text())["eos_token_id"] == 2


def test_an_interrupted_pissa_training_ends_with_the_same_weights(make_job):  # noqa: F811
    adapter = {"type": "lora", "r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "pissa"}
    job, whole, base = make_job(adapter, epochs=1, steps_per_checkpoint=1)
    run_training(job, whole, base)
    again = Run(whole.folder.with_name("again"))
    shutil.copytree(whole.path("data"), again.path("data"))

    def stop_after_two(done, total, loss):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, again, base, stop_after_two)
    run_training(job, again, base)
    actual, expected = (load_file(one.path("model", "adapter_model.safetensors")) for one in (again, whole))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    config = json.loads(whole.path("model", "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True and config["r"] == 8
