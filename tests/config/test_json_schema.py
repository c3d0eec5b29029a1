"""The JSON Schema of a config accepts what `alfine check` accepts, and refuses what it refuses as far as it can."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.config.job import job_from_document
from pipelines.config.json_schema import SCHEMA_ID, UNEXPRESSED, config_schema
from pipelines.config.strategy_registry import STRATEGIES
from pipelines.config.yaml_parser import parse_yaml
from pipelines.config.yaml_source import Document
from pipelines.errors import AlfineError, ConfigError
from tests.config.mistakes import MISTAKES

ROOT = Path(__file__).parents[2]
SCHEMA_FILE = ROOT / "docs" / "config.schema.json"
MODELINE = "# yaml-language-server: $schema="
CONFIGS = sorted((ROOT / "ludwig_configs").glob("*.yaml"))
MESSAGES = {
    "combinations of keys": r"has (no effect|settings)|requires?\b|needs (prompt|adapter|no|examples)|completion is missing|exclu(de|sive)"
    r"|keep one|is only valid|add up to|less than trainer.learning_rate|clipglobalnorm: null|-1 for that"
    r"|greater than 0 for|second matrix|decomposes|not supported with|changes the base model|remove one of them"
    r"|write apply_to|decouples|inference_engine: vllm (does not serve|generates)",
    "names": r"there is no such",
    "templates": r"not closed|has no \{ before|is not a column|contains (no column|a block)|not a template"
    r"|prints no column|for a column, |constant|syntax|Jinja",
    "strategies": r"does not support|penalizes|does not cover|conflict|multitask|remove the section adapter"
    r"|si trains|takes a step in the metric|requires the section",
    "whole floats": r"a whole number, found -?[0-9]+(\.0*)?(e\+?\d+)?($|;)",
    "infinity and NaN": r"is not a valid number|finite|, found inf",
    "regular expressions": r"not a regular expression",
    "YAML": r"duplicate key|has no value|surrogate|must be text|YAML reads the key",
    "files": r"no such file",
}
"""The kinds of `UNEXPRESSED`, each with a pattern of the messages of `alfine check`."""

GOOD = """\
pipeline:
  system: "Answer briefly."
  tasks:
    a:
      data: {train: a.jsonl, test: b.jsonl}
      template: jinja
      prompt: "{{ q }}"
      completion: "{{ a }}"
      metric: exact_match
      normalize: false
      weight: 2.5
      cluster_by: doc
      too_long: drop
      max_new_tokens: 5
      test_rows: 7
      validation_rows: all
      few_shot: 0
      chat_template_kwargs: {enable_thinking: false}
    b: {data: [c.jsonl, d.csv], messages: messages, tools: tools, train_on: last, evaluate_on: all}
    c: {data: "hub:o/n", prompt: "{q}", completion: "{a}", reasoning: "{r}", max_reasoning_tokens: 9, metric: "m:f"}
    d: {data: e.jsonl}
  mix: temperature
  temperature: 3
  chat_template: true
  max_reasoning_tokens: 7
  seed: 1
  too_long: truncate_prompt
  split: {validation: 0.2, test: 0.1}
  report:
    sample_prompts: p.jsonl
    gates: {a: {min_gain: 1, by: ci}, b: {min_gain_beyond_few_shot: 1}, mine: {max_drop: 0.5}}
    test_rows: all
    validation_rows: 5
    few_shot: {k: 2, instruction: "Be brief."}
    seed: 3
  hardware: {device: cpu, dtype: fp32, attention: loop, offload_optimizer: false}
  max_nonfinite_steps: 2
  forgetting:
    strategy: ewc+replay+distill
    ewc: {weight: 2, fisher_samples: 3, fisher: factored}
    replay: {fraction: 0.1, data: r.jsonl}
    distill: {weight: 1, temperature: 2, apply_to: general}
    evals: {mine: {kind: text_nll, data: t.jsonl, limit: 4}, kl: {kind: kl, data: k.jsonl},
            mc: {kind: multiple_choice, data: m.jsonl},
            t: {kind: task, data: u.jsonl, prompt: "{q}", completion: "{a}", metric: rouge}}
    eval_steps: 5
    max_regression: {mine: 0.1}
  continue_from: runs/x
model_type: llm
base_model: smollm2-135m-instruct
adapter: {type: lora, r: 8, alpha: 16, dropout: 0.1, bias_type: none, target_modules: [q_proj], use_rslora: true}
preprocessing: {global_max_sequence_length: 128}
trainer:
  type: finetune
  epochs: 2
  batch_size: auto
  effective_batch_size: 16
  learning_rate: 2e-4
  learning_rate_scheduler: {decay: cosine, warmup_fraction: 0.1, t_0: 5, t_mult: 2, eta_min: 0.00001}
  optimizer: {type: adamw, betas: [0.9, 0.99], eps: 1e-8, weight_decay: 0.1, amsgrad: false}
  gradient_clipping: {clipglobalnorm: 1.0, clipvalue: null}
  early_stop: 3
  checkpoints_per_epoch: 2
generation:
  do_sample: true
  temperature: 0.7
  top_k: 5
  top_p: 0.9
  repetition_penalty: 1.1
  max_new_tokens: 8
  suppress_tokens: [1, 2]
"""
"""A valid config with many keys. `sampled` and `beams` are further ones."""
ODD_VALUES: list[Any] = [
    None,
    True,
    0,
    1,
    -1,
    0.5,
    -0.5,
    1e300,
    float("inf"),
    "",
    " ",
    "auto",
    "none",
    "1",
    [],
    {},
    [1, "a"],
    {"a": 1},
    [None],
    {"type": "x"},
]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return config_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> jsonschema.Draft7Validator:
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def problems(document: Document) -> list[str]:
    """The messages of `alfine check` on a config, without its files."""
    try:
        job_from_document(document, Path("job.yaml"))
    except AlfineError as error:
        return [str(problem) for problem in error.problems]
    return []


def kinds_of(messages: list[str]) -> set[str | None]:
    """The kind of `UNEXPRESSED` of each message; None for one that the schema should have expressed."""
    return {next((kind for kind, words in MESSAGES.items() if re.search(words, text)), None) for text in messages}


def test_the_committed_schema_is_current(schema):
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == schema, (
        "run alfine schema --output docs/config.schema.json"
    )


def test_every_kind_of_what_the_schema_accepts_is_described():
    assert UNEXPRESSED.keys() == MESSAGES.keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_names_the_schema(path, validator):
    text = path.read_text(encoding="utf-8")
    assert list(validator.iter_errors(yaml.safe_load(text))) == []
    line = next(line for line in text.splitlines() if line.startswith(MODELINE))
    assert (path.parent / line.removeprefix(MODELINE)).resolve() == SCHEMA_FILE


def snippets() -> Iterator[Any]:
    for path in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]):
        text = path.read_text(encoding="utf-8")
        for number, match in enumerate(re.finditer(r"^( *)```yaml\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)):
            yield pytest.param(dedent(match[2]), id=f"{path.stem}-{number}")


@pytest.mark.parametrize("text", list(snippets()))
def test_a_documented_snippet_is_valid(text, validator, schema):
    """A snippet is a config, or a part of one: the section that it belongs in is found by its first key."""
    value = parse_yaml(text, "snippet").value
    whole = {"pipeline": {"tasks": {"t": {"data": "t.jsonl"}}}, "base_model": "m"}
    key = next(iter(value))
    if key in schema["properties"]:
        whole |= value
    elif key in schema["properties"]["pipeline"]["properties"]:
        whole["pipeline"] |= value
    else:
        whole["pipeline"]["forgetting"] = value
    pipeline = whole["pipeline"]
    pipeline.setdefault("tasks", {"t": {"data": "t.jsonl"}})
    assert list(validator.iter_errors(whole)) == []


def test_the_schema_refuses_the_mistakes_that_it_can_express(validator):
    accepted, num_refused = {}, 0
    for name, (content, _, _) in MISTAKES.items():
        if isinstance(content, bytes):
            continue
        try:
            document, value = parse_yaml(content, "job.yaml"), parse_yaml(content, "job.yaml").value
        except ConfigError:
            continue
        if not isinstance(value, dict):
            continue
        messages = problems(document)
        assert messages, name
        if validator.is_valid(value):
            accepted[name] = messages
        else:
            num_refused += 1
    assert {name: messages for name, messages in accepted.items() if None in kinds_of(messages)} == {}
    assert num_refused > 150


def all_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from all_paths(child, (*path, key))


def edited(config: Any, path: tuple[Any, ...], value: Any) -> Any:
    config = copy.deepcopy(config)
    parent = config
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return config


def choices(node: dict[str, Any]) -> Iterator[Any]:
    """Values that a node of the schema allows, and values just outside of its bounds."""
    yield from node.get("enum", ())
    if "const" in node:
        yield node["const"]
    for keyword, step in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
        if abs(node.get(keyword, 1e300)) < 1e300:
            yield from (node[keyword], node[keyword] + step)
    yield from ([node["default"]] if "default" in node else node.get("examples", ()))
    for option in node.get("anyOf", ()):
        yield from choices(option)


def schema_edits(node: dict[str, Any], path: tuple[Any, ...], config: Any) -> Iterator[Any]:
    """GOOD with a value of the schema at every key of the sections that it has."""
    parent = config
    for key in path:
        parent = parent[key]
    if not isinstance(parent, dict):
        return
    for part in (
        node,
        *node.get("anyOf", ()),
        *(case["then"] for case in node.get("allOf", ()) if _applies(case, parent)),
    ):
        for key, child in part.get("properties", {}).items():
            yield from (edited(config, (*path, key), value) for value in choices(child))
            if isinstance(parent.get(key), dict):
                yield from schema_edits(child, (*path, key), config)
        entry = part.get("additionalProperties")
        if isinstance(entry, dict):
            for name in parent:
                yield from schema_edits(entry, (*path, name), config)


def _applies(case: dict[str, Any], section: dict[str, Any]) -> bool:
    return jsonschema.Draft7Validator(case["if"]).is_valid(section)


def mutations() -> list[Any]:
    """GOOD with every value replaced by odd ones, every key renamed or removed, and an unknown key in every section."""
    config = parse_yaml(GOOD, "good").value
    edits = []
    for path in all_paths(config):
        value = config
        for key in path:
            value = value[key]
        if path:
            edits += [edited(config, path, odd) for odd in ODD_VALUES]
        if isinstance(value, dict):
            edits.append(edited(config, (*path, "unknown_key"), 1))
            for key in value:
                without = copy.deepcopy(config)
                section = without
                for part in path:
                    section = section[part]
                section[f"{key}s"] = section.pop(key)
                edits.append(without)
    return edits


def test_the_good_config_is_good(validator):
    assert problems(parse_yaml(GOOD, "good")) == []
    assert list(validator.iter_errors(parse_yaml(GOOD, "good").value)) == []


def test_check_and_schema_agree_on_good_and_bad_configs(schema, validator):
    """Of configs with one value changed, the schema accepts all that `check` accepts, and refuses the others unless
    their problems are of the kinds that it cannot express."""
    config = parse_yaml(GOOD, "good").value
    rng = random.Random(0)
    num_good = num_bad = 0
    disagreements: list[Any] = []
    for edit in [*rng.sample(mutations(), 280), *rng.sample(list(schema_edits(schema, (), config)), 280)]:
        is_valid = validator.is_valid(edit)
        messages = problems(Document(copy.deepcopy(edit)))
        num_good += not messages
        num_bad += bool(messages)
        if not messages and not is_valid:
            disagreements.append([error.message for error in validator.iter_errors(edit)])
        if messages and is_valid and None in kinds_of(messages):
            disagreements.append(messages)
    assert disagreements == []
    assert num_good >= 150 and num_bad >= 300


def test_keys_that_alfine_refuses_are_absent(schema):
    properties = schema["properties"]
    assert "input_features" not in properties and "hyperopt" not in properties
    assert "eval_batch_size" not in properties["trainer"]["properties"]
    assert "adalora" not in properties["adapter"]["properties"]["type"]["enum"]
    assert "lbfgs" not in properties["trainer"]["properties"]["optimizer"]["properties"]["type"]["enum"]
    assert properties["trust_remote_code"]["enum"] == [False]


def test_every_key_of_the_pipeline_has_a_description(schema):
    def missing(node: Any, path: str) -> Iterator[str]:
        for part in (node, *node.get("anyOf", ())):
            for key, child in part.get("properties", {}).items():
                if not child.get("description") and "const" not in child:
                    yield f"{path}.{key}"
                yield from missing(child, f"{path}.{key}")
            if isinstance(part.get("additionalProperties"), dict):
                yield from missing(part["additionalProperties"], f"{path}.NAME")

    assert list(missing(schema["properties"]["pipeline"], "pipeline")) == []
    assert all(name in json.dumps(schema["properties"]["pipeline"]) for name in STRATEGIES)


def test_every_default_and_example_is_valid_itself(schema):
    def check(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                check(item)
        elif isinstance(node, dict):
            values = [*([node["default"]] if "default" in node else []), *node.get("examples", ())]
            if isinstance(node.get("default"), dict):
                values = []  # the key `default` of a section
            for value in values:
                assert jsonschema.Draft7Validator(node).is_valid(value), (node, value)
            for child in node.values():
                check(child)

    check({key: value for key, value in schema.items() if key not in ("examples",)})


def test_the_command_writes_the_schema(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert json.loads(CliRunner().invoke(main, ["schema"]).stdout)["$id"] == SCHEMA_ID
    for _ in range(2):  # its own file may be written again
        result = CliRunner().invoke(main, ["schema", "--output", "s.json"])
        assert result.exit_code == 0 and "yaml-language-server: $schema=s.json" in result.stderr
    Path("other.json").write_text("{}")
    result = CliRunner().invoke(main, ["schema", "--output", "other.json"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --output other.json exists and is no schema of alfine")
    assert Path("other.json").read_text() == "{}"
