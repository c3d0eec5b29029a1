"""The config: what loads, and what each mistake is answered with, at which line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from pipelines.config import ludwig_unsupported
from pipelines.config.job import Job, load_job
from pipelines.config.pipeline import DataFiles, check_template
from pipelines.config.schema import ludwig_fields
from pipelines.errors import ConfigError, Problem
from pipelines.scoring.metric import METRICS
from tests.bad_configs import GOOD, MISTAKES, task, with_line

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "job.yaml"
        path.write_bytes(content if isinstance(content, bytes) else dedent(content).encode())
        return path

    return write


def problems(path: Path, *overrides: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_job(path, overrides)
    return caught.value.problems


# --- what loads --------------------------------------------------------------------------------------


def test_a_good_config_loads_with_alfines_defaults(write: Write) -> None:
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


def test_auto_is_written_out_for_the_job(write: Write) -> None:
    under_adapter, full = load_job(write(GOOD)), load_job(write(GOOD), ["adapter=null"])
    assert under_adapter.pipeline.forgetting.strategies == ["replay", "distill"]
    assert full.resolved()["pipeline"]["forgetting"]["strategy"] == "interpolate"
    behind = load_job(write(GOOD), ["adapter=null", "pipeline.continue_from=runs/one"])
    assert behind.pipeline.forgetting.strategies == ["replay", "distill"]
    (problem,) = problems(write(GOOD), "adapter=null", "pipeline.forgetting={replay: {fraction: 0.2}}")
    assert "replay has settings, but strategy is interpolate" in problem.message


def test_the_least_config_gets_its_sections(write: Write) -> None:
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
    "trainer.learning_rate_scheduler={decay: polynomial, polynomial_power: 2, polynomial_end_lr: 1e-6, warmup_fraction: 0}",
    "trainer.learning_rate_scheduler={decay: one_cycle, pct_start: 0.2, div_factor: 10, final_div_factor: 100}",
    "trainer.learning_rate_scheduler={reduce_on_plateau: 2, reduce_on_plateau_patience: 1, reduce_eval_split: validation}",
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
    "pipeline.forgetting={evals: {t: {kind: task, data: a.jsonl, prompt: '{q}', completion: '{a}', metric: exact_match}}}",
    "pipeline.report.gates={text: {max_drop: 0.05}, sentiment: {min_gain: 5, by: point_estimate}}",
    "pipeline.continue_from=runs/first",
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_ludwig_and_alfine_take_loads(write: Write, text: str) -> None:
    load_job(write(GOOD), [text])


@pytest.mark.parametrize("text", ["pipeline.tasks.sentiment.metric=chrf", "pipeline.tasks.sentiment.normalize=false"])
def test_a_job_written_out_loads_again(write: Write, text: str) -> None:
    job = load_job(write(GOOD), [text])
    assert load_job(write(yaml.safe_dump(job.resolved()))).pipeline == job.pipeline


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_loads(write: Write, metric: str) -> None:
    assert load_job(write(GOOD), [f"pipeline.tasks.sentiment.metric={metric}"])


@pytest.mark.parametrize("name", sorted(ludwig_fields()["adapter"]["variants"]))
def test_every_adapter_of_ludwig_loads_or_is_refused(write: Write, name: str) -> None:
    if ("adapter.type", name) in ludwig_unsupported.UNSUPPORTED_VALUES:
        assert "write lora" in str(problems(write(GOOD), f"adapter={{type: {name}}}")[0])
    else:
        assert load_job(write(GOOD), [f"adapter={{type: {name}}}"]).ludwig["adapter"] == {"type": name}


@pytest.mark.parametrize("name", ludwig_fields()["trainer"]["fields"]["optimizer"]["variants"])
def test_every_optimizer_of_ludwig_loads_or_is_refused(write: Write, name: str) -> None:
    if ("trainer.optimizer.type", name) in ludwig_unsupported.UNSUPPORTED_VALUES:
        assert "write adamw" in str(problems(write(GOOD), f"trainer.optimizer.type={name}")[0])
    else:
        load_job(write(GOOD), [f"trainer.optimizer.type={name}"])


def test_data_in_files_of_their_own(write: Write) -> None:
    job = load_job(write(with_line("data: data/sentiment.jsonl", "data: {train: a.csv, test: b.csv}")))
    assert job.pipeline.tasks["sentiment"].data == DataFiles(train="a.csv", test="b.csv")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2e-4", 2e-4),
        ("2E-4", 2e-4),
        ("2.e-4", 2e-4),
        (".5", 0.5),
        ("1e+0", 1.0),
        ("1_000e-4", 0.1),
        ("1", 1),
    ],
)
def test_numbers_as_people_write_them(write: Write, written: str, value: float) -> None:
    assert load_job(write(GOOD.replace("2e-4", written))).ludwig["trainer"]["learning_rate"] == value


@pytest.mark.parametrize("text", ["2024-01-01", "12:30", "010", "0x1F", "1.2.3", "e5"])
def test_texts_that_yaml_would_turn_into_something_else(write: Write, text: str) -> None:
    assert load_job(write(task(f"system: {text}"))).pipeline.tasks["sentiment"].system == text


def test_anchors_and_merge_keys(write: Write) -> None:
    job = load_job(
        write("""\
        pipeline:
          tasks:
            a: &base {data: a.csv, prompt: "{x}", completion: "{y}", metric: exact_match}
            b:
              <<: *base
              data: b.csv
        base_model: ./m
        """)
    )
    assert job.pipeline.tasks["b"].data == "b.csv"
    assert job.pipeline.tasks["b"].metric == "exact_match"
    assert (
        job.line_of("pipeline", "tasks", "b", "data"),
        job.line_of("pipeline", "tasks", "b", "metric"),
    ) == (6, 3)


def test_a_byte_order_mark_is_no_matter(write: Write) -> None:
    assert load_job(write(b"\xef\xbb\xbf" + GOOD.encode()))


def test_what_a_job_resolves_to_is_plain_data_and_loads_again(write: Write) -> None:
    job = load_job(write(GOOD), ["pipeline.tasks.sentiment.data={train: a.csv}"])
    resolved = job.resolved()
    assert list(resolved)[:3] == ["pipeline", "model_type", "base_model"]
    again = load_job(write(json.dumps(resolved)))
    assert (again.pipeline, again.ludwig) == (job.pipeline, job.ludwig)
    assert again.resolved() == resolved
    resolved["trainer"]["epochs"] = 99
    assert job.ludwig["trainer"]["epochs"] == 2


def test_mixing_by_temperature_survives_resolving(write: Write) -> None:
    job = load_job(write(GOOD), ["pipeline.mix=temperature", "pipeline.temperature=3"])
    assert load_job(write(json.dumps(job.resolved()))).pipeline.temperature == 3


# --- places ------------------------------------------------------------------------------------------


def test_lines_of_keys_and_of_their_nearest_parents(write: Write) -> None:
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


def test_an_override_of_a_section_takes_its_place(write: Write) -> None:
    job = load_job(write(GOOD), ["adapter={type: ia3}", "backend.type=local"])
    assert job.ludwig["adapter"] == {"type": "ia3"}
    assert job.ludwig["backend"] == {"type": "local"}
    assert job.problem("x", "adapter", "type").file == "override adapter={type: ia3}"


# --- mistakes ---------------------------------------------------


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_its_line_and_its_mend(write: Write, name: str) -> None:
    content, line, fragment = MISTAKES[name]
    path = write(content)
    found = problems(path)
    assert [problem for problem in found if fragment in problem.message and problem.line == line], found
    assert all(problem.file == str(path) for problem in found)
    assert all(str(problem).isprintable() for problem in found)
    assert len(found) <= 2, found  # a flood of findings that follow from one mistake would hide it


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = GOOD.replace("epochs: 2", "epochs: 0").replace("prompt:", "promt:").replace("r: 16", "rr: 16")
    found = problems(write(text), "trainer.batch_sze=8", "generation.top_k=0", "nonsense")
    assert [problem.line for problem in found] == [3, 5, 9, 11, None, None, None]
    assert {str(problem) for problem in found[4:]} == {
        "override nonsense: write key.path=value, as in trainer.epochs=1",
        "override generation.top_k=0: generation.top_k must be at least 1, found 0",
        "override trainer.batch_sze=8: trainer.batch_sze: unknown key; did you mean batch_size?",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.lerning_rate=1", "trainer.lerning_rate: unknown key; did you mean learning_rate?"),
        ("trainer.learning_rate=fast", "trainer.learning_rate: expected a number, found the text 'fast'"),
        ("trainer.epochs=", "trainer.epochs: expected a whole number, found nothing"),
        ("trainer.epochs.more=1", "trainer.epochs is 2, not a section"),
        ("trainer..epochs=1", "write key.path=value, as in trainer.epochs=1"),
        ("=1", "write key.path=value, as in trainer.epochs=1"),
        ("adapter={type: lora", "not valid YAML"),
        ("adapter={type: lora, type: ia3}", "type: duplicate key"),
        ("pipeline.seed=&a [*a]", "an alias (*) refers to a value that contains it"),
        ("pipeline.tasks.sentiment.prompt={review}", 'in quotes: "{review}"'),
    ],
)
def test_a_bad_override_names_itself(write: Write, override: str, message: str) -> None:
    (problem,) = problems(write(GOOD), override)
    assert (problem.file, problem.line) == (f"override {override}", None)
    assert message in problem.message


@pytest.mark.parametrize(
    ("name", "message"),
    [("no.yaml", "no such file"), ("folder", "is a directory"), ("a\0b", "cannot be read")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (problem,) = problems(tmp_path / name)
    assert message in problem.message


def test_a_data_file_is_not_taken_for_a_config(write: Write) -> None:
    (problem,) = problems(write(b"a: 1\n" * 30_000))
    assert "config file exceeds 100 kB" in problem.message


@pytest.mark.parametrize(
    "link",
    ["[*{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}, *{0}]", "{{<<: [*{0}, *{0}, *{0}, *{0}, *{0}]}}"],
)
def test_a_bomb_of_aliases_is_refused_at_once(write: Write, link: str) -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {link.format(f'a{n - 1}')}" for n in range(1, 12)]
    started = time.perf_counter()
    (problem,) = problems(write("\n".join(lines)))
    assert "more than 20000 values" in problem.message
    assert time.perf_counter() - started < 2


# --- templates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["", "plain", "{a}", "{a b} {{x}} {c.d}", "{{{a}}}", "}}{{", "{Überschrift}"])
def test_good_templates(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize("template", ["{", "}", "{a", "a}", "{{a}", "{a}}", "{ a}", "{a{b}}", "{\n}", "{a:}}", "{{}{"])
def test_bad_templates(template: str) -> None:
    with pytest.raises(ValueError, match='write "{column}" for a column'):
        check_template(template)


# --- the tables --------------------------------------------------------------------------------------


def _keys(fields: dict[str, dict], path: str = "") -> set[str]:  # type: ignore[type-arg]
    found = set()
    for name, node in fields.items():
        found.add(path + name)
        for inner in [node.get("fields", {}), *node.get("variants", {}).values()]:
            found |= _keys(inner, f"{path}{name}.")
    return found


@pytest.mark.parametrize(
    "table", ["IGNORED_KEYS", "UNSUPPORTED_KEYS", "SCHEMA_OVERRIDES", "REQUIRED_VALUE", "REQUIRED_KEY"]
)
def test_every_entry_of_the_tables_names_keys_of_ludwig(table: str) -> None:
    keys = _keys(ludwig_fields())
    unknown = [
        pattern
        for pattern in getattr(ludwig_unsupported, table)
        if not any(ludwig_unsupported.find_rule({pattern: True}, key) for key in keys)
    ]
    assert unknown == []


def test_every_refused_value_is_one_that_ludwig_names() -> None:
    keys = _keys(ludwig_fields())
    assert {name for name, _ in ludwig_unsupported.UNSUPPORTED_VALUES} <= keys


def test_each_key_of_the_trainer_reaches_ludwig_or_is_refused() -> None:
    """A new Ludwig may bring keys: each wants a decision."""
    names = set(ludwig_fields()["trainer"]["fields"])
    refused = {
        name for name in names if ludwig_unsupported.find_rule(ludwig_unsupported.IGNORED_KEYS, f"trainer.{name}")
    }
    assert names - refused == {
        "type",
        "epochs",
        "train_steps",
        "batch_size",
        "effective_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "learning_rate_scheduler",
        "optimizer",
        "gradient_clipping",
        "early_stop",
        "steps_per_checkpoint",
        "checkpoints_per_epoch",
        "should_shuffle",
        "enable_gradient_checkpointing",
        "layers_to_freeze_regex",
    }


@pytest.mark.parametrize("pattern", ludwig_unsupported.IGNORED_KEYS)
def test_a_key_without_effect_is_refused_with_its_reason(write: Write, pattern: str) -> None:
    key = next(key for key in sorted(_keys(ludwig_fields())) if ludwig_unsupported.find_rule({pattern: True}, key))
    kinds = {"lr": "adafactor", "block_wise": "lion", "percentile_clipping": "lion"}
    name = key.removeprefix("trainer.optimizer.")
    kind = [f"trainer.optimizer.type={kinds[name]}"] if name in kinds else []
    found = problems(write(GOOD), *kind, f"{key}=1")
    assert [problem.message for problem in found] == [
        f"{key} would have no effect: {ludwig_unsupported.IGNORED_KEYS[pattern]}"
    ]


# --- weight ------------------------------------------------------------------------------------------


def test_checking_a_config_imports_nothing_heavy(write: Write) -> None:
    code = (
        "import sys; from pathlib import Path; from pipelines.config.job import load_job; "
        f"load_job(Path({str(write(GOOD))!r})); "
        "print([name for name in ('torch', 'ludwig', 'transformers', 'pandas', 'numpy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
