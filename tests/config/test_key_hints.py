"""Every suggestion is applied to the config, which must then be accepted."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.config import other_tools
from pipelines.config.job import load_job
from pipelines.config.key_hints import KeyHints
from pipelines.config.ludwig_unsupported import SCHEMA_OVERRIDES, UNSUPPORTED_VALUES, find_rule
from pipelines.config.pipeline import PipelineSettings
from pipelines.config.pydantic_errors import schema_of
from pipelines.config.schema import ludwig_fields
from pipelines.errors import ConfigError
from tests.bad_configs import GOOD

VALID = yaml.safe_load(GOOD.replace("2e-4", "0.0002"))
FIELDS = {"pipeline": schema_of(PipelineSettings), **ludwig_fields()}
REFUSAL_PHRASES = (
    "unknown key",
    "no effect",
    "is not supported",
    "no such key",
    "there is no",
    "unknown strategy",
    "unknown metric",
)
FOREIGN_KEYS = sorted(
    key.replace("*", "x")
    for table in (other_tools.KEY_ALIASES, other_tools.REPLACEMENTS, other_tools.NO_COUNTERPART)
    for key in table
)


def messages_of(folder: Path, config: dict[str, Any]) -> list[str]:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    try:
        load_job(path)
    except ConfigError as error:
        return [problem.message for problem in error.problems]
    return []


def set_key(config: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets one key. Parents that are not sections are replaced by sections."""
    for part in path[:-1]:
        config[part] = config[part] if isinstance(config.get(part), dict) else {}
        config = config[part]
    config[path[-1]] = value


def accepted_value(path: list[str], config: dict[str, Any]) -> Any:
    """A value that the key at `path` accepts."""
    names = ["NAME" if depth == 2 and path[:2] == ["pipeline", "tasks"] else name for depth, name in enumerate(path)]
    special = {
        "data": "a.jsonl",
        "prompt": "{q}",
        "completion": "{a}",
        "metric": "exact_match",
        "betas": [0.9, 0.99],
        "base_model": "x/y",
        "sample_prompts": "p.jsonl",
        "layers_to_freeze_regex": "x",
        "strategy": "ewc",
        "max_nonfinite_steps": 3,
        "evals": "bundled",
        "max_regression": {},
        "gates": {},
        "eval_steps": 5,
    }
    if names[-1] in special:
        return special[names[-1]]
    node = find_rule(SCHEMA_OVERRIDES, ".".join(names)) or KeyHints(FIELDS, config)._node(tuple(names))
    if "enum" in node:
        name = ".".join(names)
        return next(value for value in node["enum"] if value is not None and (name, value) not in UNSUPPORTED_VALUES)
    if "variants" in node:
        return {"type": {"adapter": "lora", "optimizer": "adamw", "backend": "ray"}[names[-1]]}
    kind = [kind for kind in node.get("types", ["text"]) if kind != "null"][0]
    value = max(node.get("min", 0), node.get("above", 0) + 1e-3, 1 if kind == "integer" else 1e-3)
    value = int(value) if kind == "integer" else min(value, node.get("max", value))
    return {"integer": value, "number": value, "text": "x", "boolean": True, "list": [], "mapping": {}}[kind]


def applied(config: dict[str, Any], section: list[str], message: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The keys that a message suggests, each with a config in which the suggestion is applied."""
    if yaml_text := re.search(r"; write (\w+: \{.*)$", message):
        changed = copy.deepcopy(config)
        for key, value in yaml.safe_load(yaml_text[1]).items():
            changed[key] = {**(changed.get(key) or {}), **value}
            yield [key], changed
        return
    for key, target_section, condition in suggested_keys(message):
        if target_section is None:  # the section of the wrong key, or the top level
            target_section = section if key in KeyHints(FIELDS, config).accepted_keys(tuple(section)) else []
        changed = copy.deepcopy(config)
        path = [*("sentiment" if part == "NAME" else part for part in target_section), key]
        if condition:
            set_key(changed, [*path[:-1], condition[0]], yaml.safe_load(condition[1]))
        set_key(changed, path, accepted_value(path, changed))
        yield path, changed


def suggested_keys(message: str) -> list[tuple[str, list[str] | None, tuple[str, str] | None]]:
    """The keys that a message suggests, each with the section that it names and a value that another key must have."""
    if belongs := re.search(
        r"([^.:]+): unknown key; it belongs in ([\w.]+|the top level)(?: \(with (\w+): ([^)]*)\))?$", message
    ):
        section = [] if belongs[2] == "the top level" else belongs[2].split(".")
        return [(belongs[1], section, (belongs[3], belongs[4]) if belongs[3] else None)]
    suggestion = re.search(r"unknown key; did you mean (.*)\?$", message)
    if suggestion is None:
        return []
    parts = re.findall(r"(\w+)(?:, which belongs in ([\w.]+))?(?: \(with (\w+): ([^)]*)\))?(?: or |$)", suggestion[1])
    return [
        (key, section.split(".") if section else None, (other, value) if other else None)
        for key, section, other, value in parts
    ]


def check_hints(folder: Path, config: dict[str, Any], section: list[str], key: str) -> int:
    """Applies the suggestions for a wrong key and returns their number."""
    wrong = copy.deepcopy(config)
    set_key(wrong, [*section, key], 1)
    count = 0
    for message in messages_of(folder, wrong):
        if not message.startswith(".".join([*section, key]) + ":"):
            continue
        for path, changed in applied(config, section, message):
            count += 1
            refusals = [
                refusal
                for refusal in messages_of(folder, changed)
                if refusal.startswith(".".join(path)) and any(phrase in refusal for phrase in REFUSAL_PHRASES)
            ]
            assert not refusals, (message, path, refusals)
    return count


def sections(fields: dict[str, Any], path: list[str] | None = None) -> Iterator[tuple[list[str], list[str]]]:
    """Every section of the schema with its keys. Names that the user chooses are `sentiment`."""
    path = path or []
    yield path, list(fields)
    for name, node in fields.items():
        node = find_rule(SCHEMA_OVERRIDES, ".".join([*path, name])) or node
        for children in [node.get("fields", {}), *node.get("variants", {}).values()]:
            if children:
                yield from sections(children, [*path, name])
        if "entries" in node and node["entries"].get("fields"):
            yield from sections(node["entries"]["fields"], [*path, name, "sentiment"])


SECTIONS = list(sections(FIELDS))


def misspell(key: str, rng: random.Random) -> str:
    index = rng.randrange(len(key))
    return rng.choice(
        [
            key[:index] + key[index + 1 :],
            key + "s",
            key.upper(),
            key.replace("_", "-"),
            key.replace("_", ""),
            key[:index] + "x" + key[index:],
            key[: max(3, index)],
            "num_" + key,
            key + "_size",
            key[index:] + key[:index],
        ]
    )


@pytest.mark.parametrize(
    "key", sorted({*FOREIGN_KEYS, "micro_batch_size", "load_in_4bit", "warmup", "loss", "eval", "lora-alpha"})
)
def test_a_suggestion_for_a_key_of_another_tool_is_accepted(tmp_path, key):
    for section in ([], ["trainer"], ["adapter"], ["generation"], ["pipeline"], ["pipeline", "tasks", "sentiment"]):
        check_hints(tmp_path, VALID, section, key)


@pytest.mark.parametrize("seed", range(3))
def test_a_suggestion_for_a_misspelt_or_misplaced_key_is_accepted(tmp_path, seed):
    rng = random.Random(seed)
    num_suggestions = 0
    for section, keys in SECTIONS:
        if section[:1] == ["defaults"] or "gates" in section or "evals" in section:
            continue
        for key in rng.sample(keys, min(2, len(keys))):
            other_section, _ = rng.choice(SECTIONS)
            for path, name in ((section, misspell(key, rng)), (other_section, key), ([], misspell(key, rng))):
                if name and name not in ("type",) and "evals" not in path and "gates" not in path:
                    num_suggestions += check_hints(tmp_path, VALID, path, name)
    assert num_suggestions > 40


@pytest.mark.parametrize(
    ("name", "unsupported"), [(name, value) for name, value in UNSUPPORTED_VALUES if isinstance(value, str)]
)
def test_no_unsupported_value_is_suggested(tmp_path, name, unsupported):
    for value in (unsupported + "s", unsupported.upper(), unsupported[:-1], "zzz"):
        config = copy.deepcopy(VALID)
        set_key(config, name.split("."), value)
        for message in messages_of(tmp_path, config):
            suggested = re.split(r"did you mean |expected |write ", message)[1:]
            assert not any(re.search(rf"\b{unsupported}\b", part.split(", found")[0]) for part in suggested), message


@pytest.mark.parametrize("word", ["ful", "ewcc", "interpolat", "multitsk", "pefft"])
def test_no_strategy_that_conflicts_with_the_job_is_suggested(tmp_path, word):
    for adapter in (None, {"type": "lora"}, {"type": "ia3"}, {"type": "lora", "use_dora": True}):
        config = copy.deepcopy(VALID) | {"adapter": adapter}
        config["pipeline"]["forgetting"] = word
        (message,) = messages_of(tmp_path, config)
        suggestion = re.search(r"did you mean (\w+)\?", message)
        if suggestion:
            config["pipeline"]["forgetting"] = suggestion[1]
            assert messages_of(tmp_path, config) == []


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ([], "micro_batch_size", "micro_batch_size: unknown key; did you mean batch_size, which belongs in trainer?"),
        (
            [],
            "sequence_len",
            "sequence_len: unknown key; did you mean global_max_sequence_length, which belongs in preprocessing?",
        ),
        ([], "load_in_4bit", "load_in_4bit: unknown key; write quantization: {bits: 4}"),
        (
            [],
            "bf16",
            "bf16: unknown key; device and precision are chosen for the machine; remove it, or set pipeline.hardware.device or dtype",
        ),
        ([], "loss", "loss: unknown key; the loss is computed on the completion only; remove it"),
        (
            [],
            "max_batch_size",
            "max_batch_size: unknown key; trainer.max_batch_size would have no effect either: the batch size is fixed",
        ),
        (
            ["trainer"],
            "weight_decay",
            "trainer.weight_decay: unknown key; it belongs in trainer.optimizer (with type: adamw)",
        ),
        (["adapter"], "lora_alpha", "adapter.lora_alpha: unknown key; did you mean alpha?"),
        (
            ["pipeline", "tasks", "sentiment"],
            "output",
            "pipeline.tasks.sentiment.output: unknown key; did you mean completion?",
        ),
        (
            [],
            "disable_gradient_checkpointing",
            "disable_gradient_checkpointing: unknown key; write trainer: {enable_gradient_checkpointing: false}",
        ),
        (["backend", "trainer"], "use_cpu", "backend.trainer.use_cpu: unknown key; known keys: num_workers, use_gpu"),
        (["generation"], "min_tokens", "generation.min_tokens: unknown key; did you mean min_new_tokens?"),
        ([], "do_train", "do_train: unknown key; alfine run trains; remove it"),
    ],
)
def test_messages_on_unknown_keys(tmp_path, section, key, message):
    config = copy.deepcopy(VALID)
    set_key(config, [*section, key], 5)
    if section[:1] == ["backend"]:
        config["backend"]["type"] = "ray"
    assert messages_of(tmp_path, config)[0].startswith(message)


def test_every_key_with_aliases_exists():
    hints = KeyHints(FIELDS, {})
    for target in set(other_tools.KEY_ALIASES.values()):
        *section, key = target.split(".")
        assert key in hints.accepted_keys(tuple(section)), target


CONFIGS = {
    "an axolotl": {
        "base_model": "a/b",
        "micro_batch_size": 2,
        "sequence_len": 2048,
        "datasets": [{"path": "x", "type": "alpaca"}],
        "adapter": "qlora",
    },
    "a LLaMA-Factory": {
        "model_name_or_path": "a/b",
        "stage": "sft",
        "finetuning_type": "lora",
        "dataset": "x",
        "cutoff_len": 2048,
    },
    "a torchtune": {"model": {"_component_": "x.y"}, "loss": {"_component_": "z"}, "batch_size": 2},
    "a Ludwig": {
        "model_type": "llm",
        "base_model": "a/b",
        "input_features": [],
        "output_features": [],
        "adapter": {"type": "lora"},
    },
    "a TRL or Hugging Face": {
        "model_name_or_path": "a/b",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 3,
        "dataset_name": "x",
    },
    "an unsloth": {"max_seq_length": 2048, "load_in_4bit": True, "use_gradient_checkpointing": "unsloth"},
    "a litgpt": {"checkpoint_dir": "x", "out_dir": "y", "lora_r": 8, "precision": "bf16-true"},
}


@pytest.mark.parametrize("tool", CONFIGS)
def test_a_config_of_another_tool_is_recognized(tmp_path, tool):
    messages = messages_of(tmp_path, CONFIGS[tool])
    assert messages[0].startswith(f"this is {tool} config, not one of alfine; ")
    assert 'README, "Your own data"' in messages[0] and len(messages) <= 10
    assert not any(message.startswith("pipeline.tasks is missing") for message in messages)


def test_a_config_of_alfine_is_not_taken_for_one_of_another_tool(tmp_path):
    assert other_tools.detect_tool({**VALID, "micro_batch_size": 1, "sequence_len": 1}) is None
    assert other_tools.detect_tool({"base_model": "x", "trainer": {}, "adapter": {}, "output_dir": "x"}) is None
