"""Configs that load: defaults, sections, source locations."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from pipelines.config import ludwig_unsupported
from pipelines.config.data_files import DataFiles
from pipelines.config.job import Job, load_job
from pipelines.config.schema import ludwig_fields
from pipelines.scoring.metric import METRICS
from tests.bad_configs import GOOD, with_line
from tests.config.problems import Write, problems


def test_a_valid_config_loads_with_defaults(write: Write) -> None:
    job = load_job(write(GOOD))
    assert job.ludwig == {
        "model_type": "llm",
        "base_model": "smollm2-135m-instruct",
        "adapter": {"type": "lora", "r": 16},
        "trainer": {"type": "finetune", "batch_size": 8, "epochs": 2, "learning_rate": 0.0002},
        "generation": {"do_sample": False, "max_new_tokens": 8},
    }
    sentiment = job.pipeline.tasks["sentiment"]
    assert (sentiment.data, sentiment.metric, sentiment.weight) == ("data/sentiment.jsonl", "exact_match", 1.0)
    assert job.pipeline.mix == "proportional"
    assert (job.pipeline.split.validation, job.pipeline.split.test, job.pipeline.seed) == (0.1, 0.1, 42)


def test_the_sections_of_a_job_have_one_form(write: Write) -> None:
    job = load_job(write(GOOD))
    assert (job.base_model, job.adapter, job.quantization) == ("smollm2-135m-instruct", {"type": "lora", "r": 16}, None)
    assert (job.trainer["epochs"], job.generation["do_sample"]) == (2, False)
    assert (job.backend, job.max_sequence_length) == ({"type": "local"}, None)
    full = load_job(write(GOOD), ["adapter=null", "backend=ray", "preprocessing.global_max_sequence_length=64"])
    assert (full.adapter, full.backend, full.max_sequence_length) == (None, {"type": "ray"}, 64)


def test_a_task_has_its_own_system_prompt_and_limit_or_those_of_the_job(write: Write) -> None:
    job = load_job(write(GOOD))
    assert (job.system_prompt("sentiment"), job.max_new_tokens("sentiment"), job.max_new_tokens()) == (None, 8, 8)
    job = load_job(write(GOOD), ["pipeline.system=Be brief.", "pipeline.tasks.sentiment.max_new_tokens=3"])
    assert (job.system_prompt("sentiment"), job.max_new_tokens("sentiment")) == ("Be brief.", 3)
    job = load_job(write(GOOD), ["pipeline.system=Be brief.", "pipeline.tasks.sentiment.system=''"])
    assert (job.system_prompt("sentiment"), job.system_prompt()) == ("", "Be brief.")


def test_auto_is_resolved_for_the_job(write: Write) -> None:
    under_adapter, full = load_job(write(GOOD)), load_job(write(GOOD), ["adapter=null"])
    assert under_adapter.pipeline.forgetting.strategies == ["replay", "distill"]
    assert full.resolved()["pipeline"]["forgetting"]["strategy"] == "interpolate"
    continued = load_job(write(GOOD), ["adapter=null", "pipeline.continue_from=runs/one"])
    assert continued.pipeline.forgetting.strategies == ["replay", "distill"]
    (problem,) = problems(write(GOOD), "adapter=null", "pipeline.forgetting={replay: {fraction: 0.2}}")
    assert "replay has settings, but strategy is interpolate" in problem.message


def test_a_minimal_config_gets_all_sections(write: Write) -> None:
    tail = 'completion: "{b}"}}}\nbase_model: ./model\n'
    job = load_job(write('pipeline: {tasks: {t: {data: rows.csv, prompt: "{a}", ' + tail))
    assert job.ludwig["trainer"] == {"type": "finetune", "epochs": 3, "batch_size": 8}
    assert job.ludwig["generation"] == {"do_sample": False, "max_new_tokens": 128}
    assert "adapter" not in job.ludwig
    assert job.pipeline.tasks["t"].metric == "rouge"


ACCEPTED = [
    "trainer.optimizer={type: adamw, betas: [0.9, 0.99], weight_decay: 0.01}",
    "trainer.learning_rate_scheduler={decay: cosine, warmup_fraction: 0.1, t_0: 50}",
    "trainer.learning_rate_scheduler={decay: null, warmup_evaluations: 1.0}",
    "trainer.learning_rate_scheduler={decay: wsd, wsd_stable_fraction: 0.7, wsd_decay_fraction: 0.2, t_0: null}",
    "trainer.learning_rate_scheduler={decay: exponential, decay_steps: 10, staircase: true, warmup_evaluations: 1}",
    "trainer.learning_rate_scheduler={decay: inverse_sqrt, inverse_sqrt_warmup_steps: 10}",
    "trainer.learning_rate_scheduler={decay: polynomial, polynomial_power: 2, polynomial_end_lr: 1e-6}",
    "trainer.learning_rate_scheduler={decay: one_cycle, pct_start: 0.2, div_factor: 10, final_div_factor: 100}",
    "trainer.learning_rate_scheduler={reduce_on_plateau: 2, reduce_on_plateau_patience: 1}",
    "trainer.learning_rate_scheduler={reduce_on_plateau: 2, reduce_eval_split: validation}",
    "trainer.learning_rate_scheduler={decay: polynomial, warmup_fraction: 0}",
    "trainer.gradient_clipping={clipglobalnorm: null, clipvalue: 1}",
    "trainer.optimizer={type: adafactor, scale_parameter: true, relative_step: false}",
    "trainer.gradient_clipping={clipglobalnorm: 1}",
    "trainer.gradient_clipping=null",
    "trainer.early_stop=-1",
    "trainer.batch_size=8.0",
    "trainer.learning_rate=1e-5",
    "trainer.learning_rate=1",
    "trainer.enable_gradient_checkpointing=yes",
    "trainer.layers_to_freeze_regex=layers\\.[0-3]\\.",
    "trainer.type=finetune",
    "adapter=null",
    "adapter={type: ia3, feedforward_modules: [down_proj]}",
    "adapter={type: lora, target_modules: [q_proj], rank_pattern: {layers.0.q_proj: 4}}",
    "adapter={type: lora, init_lora_weights: pissa}",
    "adapter={type: lora, alpha: 32, dropout: 0, use_dora: true, loraplus_lr_ratio: 8}",
    "quantization={bits: 4, bnb_4bit_compute_dtype: bfloat16, bnb_4bit_quant_type: fp4}",
    "quantization={bits: 8, llm_int8_threshold: 5}",
    "quantization=null",
    "preprocessing={global_max_sequence_length: 1024}",
    "backend=local",
    "backend={type: local}",
    "trust_remote_code=false",
    "model_type=llm",
    "generation={do_sample: true, temperature: 0.7, top_p: 0.9, top_k: 40}",
    "generation={do_sample: false, temperature: 0}",
    "generation={num_beams: 4, early_stopping: never, length_penalty: -1}",
    "generation={forced_eos_token_id: [1, 2], suppress_tokens: [3], bad_words_ids: [[1, 2], [3]]}",
    "pipeline.tasks.sentiment.metric=my_metrics.tone:score",
    "pipeline.tasks.sentiment.metric=मापक.हिन्दी:अंक",
    "pipeline.tasks.sentiment.normalize=false",
    "pipeline.tasks.sentiment.normalize=true",
    "pipeline.tasks.sentiment.data={train: a.jsonl, test: b.jsonl}",
    "pipeline.tasks.sentiment.weight=2",
    "pipeline.tasks.sentiment.prompt='{{\"a\": 1}} {review}'",
    "pipeline.chat_template=null",
    "pipeline.report.sample_prompts=data/sample_prompts.jsonl",
    "pipeline.split={test: 0, validation: 0}",
    "pipeline.forgetting=none",
    "pipeline.forgetting=auto",
    "pipeline.forgetting=replay+distill",
    "pipeline.forgetting=peft+ewc + si",
    "pipeline.forgetting={strategy: ewc, ewc: {weight: 3, fisher: kronecker}, evals: none}",
    "pipeline.forgetting={evals: {mine: {kind: text_nll, data: a.jsonl}}, eval_steps: 20, max_regression: {mine: 0.1}}",
    "pipeline.forgetting={evals: {t: {kind: task, data: a.jsonl, prompt: '{q}', completion: '{a}', metric: chrf}}}",
    "pipeline.report.gates={text: {max_drop: 0.05}, sentiment: {min_gain: 5, by: point_estimate}}",
    "pipeline.continue_from=runs/first",
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_supported_overrides_load(write: Write, text: str) -> None:
    load_job(write(GOOD), [text])


@pytest.mark.parametrize("text", ["pipeline.tasks.sentiment.metric=chrf", "pipeline.tasks.sentiment.normalize=false"])
def test_a_resolved_job_loads_again(write: Write, text: str) -> None:
    job = load_job(write(GOOD), [text])
    assert load_job(write(yaml.safe_dump(job.resolved()))).pipeline == job.pipeline


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_loads(write: Write, metric: str) -> None:
    assert load_job(write(GOOD), [f"pipeline.tasks.sentiment.metric={metric}"])


@pytest.mark.parametrize("name", sorted(ludwig_fields()["adapter"]["variants"]))
def test_every_adapter_of_ludwig_loads_or_is_unsupported(write: Write, name: str) -> None:
    if ("adapter.type", name) in ludwig_unsupported.UNSUPPORTED_VALUES:
        assert "write lora" in str(problems(write(GOOD), f"adapter={{type: {name}}}")[0])
    else:
        assert load_job(write(GOOD), [f"adapter={{type: {name}}}"]).ludwig["adapter"] == {"type": name}


@pytest.mark.parametrize("name", ludwig_fields()["trainer"]["fields"]["optimizer"]["variants"])
def test_every_optimizer_of_ludwig_loads_or_is_unsupported(write: Write, name: str) -> None:
    if ("trainer.optimizer.type", name) in ludwig_unsupported.UNSUPPORTED_VALUES:
        assert "write adamw" in str(problems(write(GOOD), f"trainer.optimizer.type={name}")[0])
    else:
        settings = ["trainer.optimizer.momentum=0.9"] if name == "sgd_8bit" else []
        without_adapter = ["adapter=null"] if name in ("lamb", "lars") else []
        load_job(write(GOOD), [f"trainer.optimizer.type={name}", *settings, *without_adapter])


def test_one_data_file_per_split(write: Write) -> None:
    job = load_job(write(with_line("data: data/sentiment.jsonl", "data: {train: a.csv, test: b.csv}")))
    assert job.pipeline.tasks["sentiment"].data == DataFiles(train="a.csv", test="b.csv")


def test_the_resolved_config_is_plain_data_and_loads_again(write: Write) -> None:
    job = load_job(write(GOOD), ["pipeline.tasks.sentiment.data={train: a.csv}"])
    resolved = job.resolved()
    assert list(resolved)[:3] == ["pipeline", "model_type", "base_model"]
    reloaded = load_job(write(json.dumps(resolved)))
    assert (reloaded.pipeline, reloaded.ludwig) == (job.pipeline, job.ludwig)
    assert reloaded.resolved() == resolved
    resolved["trainer"]["epochs"] = 99
    assert job.ludwig["trainer"]["epochs"] == 2


def test_the_resolved_config_has_the_temperature(write: Write) -> None:
    job = load_job(write(GOOD), ["pipeline.mix=temperature", "pipeline.temperature=3"])
    assert load_job(write(json.dumps(job.resolved()))).pipeline.temperature == 3


def test_lines_of_keys_and_of_their_parents(write: Write) -> None:
    path = write(GOOD)
    job = load_job(path)
    assert job.line_of("pipeline", "tasks", "sentiment", "prompt") == 5
    assert job.line_of("pipeline", "tasks", "sentiment", "system") == 3
    assert job.line_of("adapter", "r") == 9
    assert job.line_of("nothing", "at", "all") == 1
    assert str(job.problem("too long", "trainer", "epochs")) == f"{path}:11: too long"
    assert Job(path, job.pipeline, {}).line_of("trainer") is None


def test_a_key_set_by_an_override_is_reported_there(write: Write) -> None:
    job = load_job(write(GOOD), ["trainer.epochs=3"])
    assert job.ludwig["trainer"]["epochs"] == 3
    assert str(job.problem("too many", "trainer", "epochs")) == "override trainer.epochs=3: too many"
    assert job.line_of("trainer", "learning_rate") == 12


def test_an_override_replaces_a_section(write: Write) -> None:
    job = load_job(write(GOOD), ["adapter={type: ia3}", "backend.type=local"])
    assert job.ludwig["adapter"] == {"type": "ia3"}
    assert job.ludwig["backend"] == {"type": "local"}
    assert job.problem("x", "adapter", "type").file == "override adapter={type: ia3}"


def test_loading_a_config_imports_no_large_package(write: Write) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.config.job import load_job; "
        f"load_job(Path({str(write(GOOD))!r})); "
        "print([name for name in ('torch', 'ludwig', 'transformers', 'pandas', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_override_gives_keys_to_a_section_that_is_null(write: Write) -> None:
    job = load_job(write(GOOD.replace("adapter: {type: lora, r: 16}", "adapter: null")), ["adapter.type=lora"])
    assert "adapter: null" in job.path.read_text() and job.adapter == {"type": "lora"}
