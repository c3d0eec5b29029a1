"""Every hint is followed: what a message says to write is put there, and must be accepted."""

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
from pipelines.config.pipeline import Pipeline
from pipelines.config.pydantic_errors import schema_of
from pipelines.config.schema import ludwig_fields
from pipelines.errors import ConfigError
from tests.bad_configs import GOOD

HERE = yaml.safe_load(GOOD.replace("2e-4", "0.0002"))
TREE = {"pipeline": schema_of(Pipeline), **ludwig_fields()}
REFUSALS = (
    "unknown key",
    "no effect",
    "is not possible",
    "no such key",
    "there is no",
    "unknown strategy",
    "unknown metric",
)
FOREIGN = sorted(
    key.replace("*", "x")
    for table in (other_tools.KEY_ALIASES, other_tools.REPLACEMENTS, other_tools.NO_COUNTERPART)
    for key in table
)


def findings(folder: Path, config: dict[str, Any]) -> list[str]:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True, sort_keys=False), encoding="utf-8")
    try:
        load_job(path)
    except ConfigError as error:
        return [problem.message for problem in error.problems]
    return []


def put(config: dict[str, Any], path: list[str], value: Any) -> None:
    """Sets one key; sections on the way that are missing, or no sections, are made."""
    for part in path[:-1]:
        config[part] = config[part] if isinstance(config.get(part), dict) else {}
        config = config[part]
    config[path[-1]] = value


def a_value(path: list[str], config: dict[str, Any]) -> Any:
    """One that is accepted at a place of the tree."""
    names = ["NAME" if place == 2 and path[:2] == ["pipeline", "tasks"] else name for place, name in enumerate(path)]
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
    node = find_rule(SCHEMA_OVERRIDES, ".".join(names)) or KeyHints(TREE, config)._node(tuple(names))
    if "enum" in node:
        return next(one for one in node["enum"] if one is not None and (".".join(names), one) not in UNSUPPORTED_VALUES)
    if "variants" in node:
        return {"type": {"adapter": "lora", "optimizer": "adamw", "backend": "ray"}[names[-1]]}
    kind = [kind for kind in node.get("types", ["text"]) if kind != "null"][0]
    number = max(node.get("min", 0), node.get("above", 0) + 1e-3, 1 if kind == "integer" else 1e-3)
    number = int(number) if kind == "integer" else min(number, node.get("max", number))
    return {"integer": number, "number": number, "text": "x", "boolean": True, "list": [], "mapping": {}}[kind]


def followed(config: dict[str, Any], section: list[str], message: str) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """The places that a message tells to write to, each with the config in which that is done."""
    if written := re.search(r"; write (\w+: \{.*)$", message):
        changed = copy.deepcopy(config)
        for key, value in yaml.safe_load(written[1]).items():
            changed[key] = {**(changed.get(key) or {}), **value}
            yield [key], changed
        return
    for key, home, condition in named(message):
        if home is None:  # beside the wrong key, or at the top
            home = section if key in KeyHints(TREE, config).accepted_keys(tuple(section)) else []
        changed = copy.deepcopy(config)
        place = [*("sentiment" if part == "NAME" else part for part in home), key]
        if condition:
            put(changed, [*place[:-1], condition[0]], yaml.safe_load(condition[1]))
        put(changed, place, a_value(place, changed))
        yield place, changed


def named(message: str) -> list[tuple[str, list[str] | None, tuple[str, str] | None]]:
    """The keys that a message names, each with the section that it names with it and a neighbour that the key needs."""
    if belongs := re.search(
        r"([^.:]+): unknown key; it belongs in ([\w.]+|the top level)(?: \(with (\w+): ([^)]*)\))?$", message
    ):
        home = [] if belongs[2] == "the top level" else belongs[2].split(".")
        return [(belongs[1], home, (belongs[3], belongs[4]) if belongs[3] else None)]
    meant = re.search(r"unknown key; did you mean (.*)\?$", message)
    parts = (
        re.findall(r"(\w+)(?:, which belongs in ([\w.]+))?(?: \(with (\w+): ([^)]*)\))?(?: or |$)", meant[1])
        if meant
        else []
    )
    return [
        (key, home.split(".") if home else None, (near, value) if near else None) for key, home, near, value in parts
    ]


def check_hints(folder: Path, config: dict[str, Any], section: list[str], key: str) -> int:
    """The hints on a wrong key, each followed."""
    wrong = copy.deepcopy(config)
    put(wrong, [*section, key], 1)
    count = 0
    for message in findings(folder, wrong):
        if not message.startswith(".".join([*section, key]) + ":"):
            continue
        for place, changed in followed(config, section, message):
            count += 1
            refused = [
                one
                for one in findings(folder, changed)
                if one.startswith(".".join(place)) and any(word in one for word in REFUSALS)
            ]
            assert not refused, (message, place, refused)
    return count


def sections(fields: dict[str, Any], path: list[str] | None = None) -> Iterator[tuple[list[str], list[str]]]:
    """Every section of the tree with its keys; the names of the user's are `sentiment`."""
    path = path or []
    yield path, list(fields)
    for name, node in fields.items():
        node = find_rule(SCHEMA_OVERRIDES, ".".join([*path, name])) or node
        for inner in [node.get("fields", {}), *node.get("variants", {}).values()]:
            if inner:
                yield from sections(inner, [*path, name])
        if "each" in node and node["each"].get("fields"):
            yield from sections(node["each"]["fields"], [*path, name, "sentiment"])


SECTIONS = list(sections(TREE))


def misspelt(key: str, random_: random.Random) -> str:
    place = random_.randrange(len(key))
    return random_.choice(
        [
            key[:place] + key[place + 1 :],
            key + "s",
            key.upper(),
            key.replace("_", "-"),
            key.replace("_", ""),
            key[:place] + "x" + key[place:],
            key[: max(3, place)],
            "num_" + key,
            key + "_size",
            key[place:] + key[:place],
        ]
    )


@pytest.mark.parametrize(
    "key", sorted({*FOREIGN, "micro_batch_size", "load_in_4bit", "warmup", "loss", "eval", "lora-alpha"})
)
def test_a_hint_on_a_key_of_another_tool_is_accepted_where_it_says(tmp_path, key):
    for section in ([], ["trainer"], ["adapter"], ["generation"], ["pipeline"], ["pipeline", "tasks", "sentiment"]):
        check_hints(tmp_path, HERE, section, key)


@pytest.mark.parametrize("seed", range(3))
def test_a_hint_on_a_misspelt_or_misplaced_key_is_accepted_where_it_says(tmp_path, seed):
    random_ = random.Random(seed)
    followed_hints = 0
    for section, keys in SECTIONS:
        if section[:1] == ["defaults"] or "gates" in section or "guards" in section:
            continue
        for key in random_.sample(keys, min(2, len(keys))):
            elsewhere, _ = random_.choice(SECTIONS)
            for place, name in ((section, misspelt(key, random_)), (elsewhere, key), ([], misspelt(key, random_))):
                if name and name not in ("type",) and "guards" not in place and "gates" not in place:
                    followed_hints += check_hints(tmp_path, HERE, place, name)
    assert followed_hints > 40


@pytest.mark.parametrize(
    ("name", "refused"), [(name, value) for name, value in UNSUPPORTED_VALUES if isinstance(value, str)]
)
def test_no_refused_value_is_suggested(tmp_path, name, refused):
    for value in (refused + "s", refused.upper(), refused[:-1], "zzz"):
        config = copy.deepcopy(HERE)
        put(config, name.split("."), value)
        for message in findings(tmp_path, config):
            suggested = re.split(r"did you mean |expected |write ", message)[1:]
            assert not any(re.search(rf"\b{refused}\b", part.split(", found")[0]) for part in suggested), message


@pytest.mark.parametrize("word", ["ful", "ewcc", "interpolat", "multitsk", "pefft"])
def test_no_strategy_is_suggested_that_the_job_contradicts(tmp_path, word):
    for adapter in (None, {"type": "lora"}, {"type": "ia3"}, {"type": "lora", "use_dora": True}):
        config = copy.deepcopy(HERE) | {"adapter": adapter}
        config["pipeline"]["forgetting"] = word
        (message,) = findings(tmp_path, config)
        listed = re.search(r"did you mean (\w+)\?", message)
        if listed:
            config["pipeline"]["forgetting"] = listed[1]
            assert findings(tmp_path, config) == []


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
        ([], "bf16", "bf16: unknown key; the hardware decides the precision (bf16 where supported); remove it"),
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
def test_what_a_hint_says(tmp_path, section, key, message):
    config = copy.deepcopy(HERE)
    put(config, [*section, key], 5)
    if section[:1] == ["backend"]:
        config["backend"]["type"] = "ray"
    assert findings(tmp_path, config)[0].startswith(message)


def test_every_place_of_the_tables_exists():
    hints = KeyHints(TREE, {})
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
def test_a_config_of_another_tool_is_named_first_and_answered_briefly(tmp_path, tool):
    found = findings(tmp_path, CONFIGS[tool])
    assert found[0].startswith(f"this is {tool} config, which is read by another tool; ")
    assert 'README, "Your own data"' in found[0] and len(found) <= 10
    assert not any(message.startswith("pipeline.tasks is missing") for message in found)


def test_a_config_of_ones_own_is_not_taken_for_another_tools(tmp_path):
    assert other_tools.detect_tool({**HERE, "micro_batch_size": 1, "sequence_len": 1}) is None
    assert other_tools.detect_tool({"base_model": "x", "trainer": {}, "adapter": {}, "output_dir": "x"}) is None
