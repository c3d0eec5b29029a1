"""What the hints advise for keys of other tools is accepted: each suggestion is applied literally, and the job loads."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines.config.job import load_job
from pipelines.config.key_hints import KeyHints
from pipelines.config.ludwig_unsupported import unsupported
from pipelines.config.other_tools import KEY_ALIASES, NO_COUNTERPART, REPLACEMENTS
from pipelines.config.pipeline import PipelineSettings
from pipelines.config.pydantic_errors import schema_of
from pipelines.config.schema import ludwig_fields

EXAMPLES = {
    "adapter.alpha": 32,
    "adapter.dropout": 0.1,
    "adapter.r": 16,
    "adapter.target_modules": ["q_proj"],
    "base_model": "owner/name",
    "generation.max_new_tokens": 64,
    "pipeline.split.test": 0.2,
    "pipeline.split.validation": 0.2,
    "pipeline.system": "Be brief.",
    "pipeline.tasks.t.completion": "{b}",
    "pipeline.tasks.t.data": "rows.jsonl",
    "pipeline.tasks.t.prompt": "{a}",
    "preprocessing.global_max_sequence_length": 512,
    "trainer.batch_size": 4,
    "trainer.checkpoints_per_epoch": 2,
    "trainer.early_stop": 3,
    "trainer.enable_gradient_checkpointing": True,
    "trainer.epochs": 2,
    "trainer.gradient_accumulation_steps": 2,
    "trainer.gradient_clipping.clipglobalnorm": 1.0,
    "trainer.learning_rate": 0.0001,
    "trainer.learning_rate_scheduler.decay": "cosine",
    "trainer.learning_rate_scheduler.eta_min": 0.00001,
    "trainer.learning_rate_scheduler.warmup_fraction": 0.1,
    "trainer.optimizer.type": "adamw",
    "trainer.should_shuffle": True,
    "trainer.steps_per_checkpoint": 50,
    "trainer.train_steps": 100,
}
"""A value for each key that is suggested."""


def job_config():
    return {
        "pipeline": {"tasks": {"t": {"data": "rows.jsonl", "prompt": "{a}", "completion": "{b}"}}},
        "base_model": "o/n",
    }


def message_for(key, value):
    config = job_config() | {key: value}
    return KeyHints({"pipeline": schema_of(PipelineSettings), **ludwig_fields()}, config).unknown_key((key,), value)


def load(config, tmp_path):
    if config.get("quantization") and not config.get("adapter"):
        config["adapter"] = {"type": "lora"}
    path = Path(tmp_path) / "job.yaml"
    path.write_text(yaml.safe_dump(config))
    return load_job(path)


def put(config, dotted, value):
    *sections, name = dotted.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[name] = value


def merge(config, addition):
    for key, value in addition.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            merge(config[key], value)
        else:
            config[key] = value


def apply(config, suggestion):
    """Does what a suggestion of a key says, with a value that fits."""
    match = re.fullmatch(r"did you mean ([\w.]+)(?:, which belongs in ([\w.]+))?((?: \(with [^)]+\))*)\?", suggestion)
    assert match, suggestion
    key, section, conditions = match[1], match[2] or "", match[3]
    section = section.replace("NAME", "t")
    for name, value in re.findall(r"with (\w+): (\w+)", conditions):
        put(config, f"{section}.{name}", yaml.safe_load(value))
    dotted = f"{section}.{key}".removeprefix(".")
    put(config, dotted, EXAMPLES[dotted])


@pytest.mark.parametrize("key", sorted(KEY_ALIASES))
def test_the_suggested_key_is_accepted(key, tmp_path):
    config = job_config()
    apply(config, message_for(key, 3).partition("; ")[2])
    load(config, tmp_path)


@pytest.mark.parametrize("key", sorted(REPLACEMENTS))
def test_the_suggested_yaml_is_accepted(key, tmp_path):
    suggestion = message_for(key, True).partition("; ")[2]
    config = job_config()
    if suggestion.startswith("write "):
        merge(config, yaml.safe_load(suggestion.removeprefix("write ")))
    else:
        apply(config, suggestion)
    load(config, tmp_path)


@pytest.mark.parametrize("reason", sorted(set(NO_COUNTERPART.values())))
def test_keys_that_a_reason_names_are_accepted(reason, tmp_path):
    hints = KeyHints({"pipeline": schema_of(PipelineSettings), **ludwig_fields()}, job_config())
    for yaml_text in re.findall(r"\b\w+: \{.*\}", reason):
        config = job_config()
        merge(config, yaml.safe_load(yaml_text))
        load(config, tmp_path)
    for name in re.findall(r"\b(?:pipeline|trainer|adapter|generation|backend|preprocessing)\.[\w.]*\w", reason):
        *section, key = name.split(".")
        assert key in hints.accepted_keys(tuple(section)), name
        assert unsupported(name) is None
