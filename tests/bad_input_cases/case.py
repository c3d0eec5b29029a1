"""A bad input, and functions for frequent ones."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import save

GOOD = """\
pipeline:
  tasks:
    reviews:
      data: rows.jsonl
      prompt: "Positive or negative?\\n{review}"
      completion: "{label}"
      metric: exact_match
base_model: smollm2-135m-instruct
adapter: {type: lora}
trainer: {type: finetune, epochs: 1}
"""
ROWS = "".join(
    json.dumps(
        {
            "review": f"Cup number {index} is {'fine' if index % 2 else 'cracked'}.",
            "label": "good" if index % 2 else "bad",
        }
    )
    + "\n"
    for index in range(20)
)


def rows_with_tests(tests: Any) -> str:
    """ROWS with the column `tests`."""
    return "".join(json.dumps({**json.loads(line), "tests": tests}) + "\n" for line in ROWS.splitlines())


@dataclass(frozen=True)
class Case:
    """A command in a folder with the given files.

    others: further files by path.
    links: symbolic links: path → target.
    fault: the error that the operating system raises.
    environment: variables to set.
    """

    title: str
    command: str | list[str]
    config: str | bytes | None = GOOD
    rows: str | bytes | None = ROWS
    others: dict[str, str | bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    fault: OSError | None = None
    environment: dict[str, str] = field(default_factory=dict)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def custom_metric(module: str, body: str, parameters: str = "completion, reference, row") -> dict[str, Any]:
    """A config with a custom metric. Every case needs its own module name, because Python caches modules."""
    return {
        "config": changed("metric: exact_match", f"metric: {module}:f"),
        "others": {f"{module}.py": f"def f({parameters}):\n    {body}\n"},
    }


def forgetting(value: str) -> str:
    return GOOD.replace("  tasks:", f"  forgetting: {value}\n  tasks:")


def retention_eval(kind: str, rows: str = "", more_keys: str = "") -> dict[str, Any]:
    """A config with one retention eval, and its file."""
    return {
        "config": forgetting(f"{{evals: {{mine: {{kind: {kind}, data: eval.jsonl{more_keys}}}}}}}"),
        "others": {"eval.jsonl": rows},
    }


def model(**files: str | bytes) -> dict[str, Any]:
    """A config whose base model is a folder with the given files, by the keys of `names`."""
    names = {
        "config": "config.json",
        "weights": "model.safetensors",
        "pickle": "pytorch_model.bin",
        "code": "modeling.py",
        "tokenizer": "tokenizer.json",
        "tokenizer_config": "tokenizer_config.json",
        "template": "chat_template.jinja",
        "index": "model.safetensors.index.json",
        "shard": "model-00001-of-00002.safetensors",
    }
    return {
        "config": changed("smollm2-135m-instruct", "./model"),
        "others": {f"model/{names[key]}": text for key, text in files.items()},
    }


def llama(
    weights: str | bytes | None = None, settings: dict[str, Any] | None = None, **files: str | bytes
) -> dict[str, Any]:
    """A config whose base model is a folder with a Llama of two layers, with the given changes."""
    config = json.dumps({"model_type": "llama", "vocab_size": 8, "num_hidden_layers": 2, **(settings or {})})
    shapes = {
        "model.embed_tokens.weight": (8, 2),
        **{f"model.layers.{layer}.mlp.up_proj.weight": (2, 2) for layer in range(2)},
    }
    content = save({name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()})
    parts = {"weights": content if weights is None else weights, "tokenizer": "{}", **files}
    return model(config=config, **{name: part for name, part in parts.items() if part != b""})


WEIGHTS = save({"model.embed_tokens.weight": np.zeros((8, 2), dtype=np.float16)})


def with_module(name: str) -> dict[str, Any]:
    """A config with the target modules q_proj and `name`, and a base model with headers of its weights."""
    names = [f"model.layers.0.self_attn.{module}.weight" for module in ("q_proj", "v_proj")]
    header = json.dumps(
        {weight: {"dtype": "F32", "shape": [0, 8], "data_offsets": [0, 0]} for weight in names}
    ).encode()
    files = model(config='{"model_type": "llama"}', weights=len(header).to_bytes(8, "little") + header)
    config = files["config"].replace("{type: lora}", f"{{type: lora, target_modules: [q_proj, {name}]}}")
    return {"config": config, "others": {**files["others"], "model/tokenizer.json": "{}"}}


def base(name: str) -> str:
    return changed("smollm2-135m-instruct", name)


def csv(text: str | bytes) -> dict[str, Any]:
    return {"config": changed("rows.jsonl", "rows.csv"), "rows": None, "others": {"rows.csv": text}}


def sample_prompts(rows: str) -> dict[str, Any]:
    return {
        "config": GOOD.replace("  tasks:", "  report: {sample_prompts: prompts.jsonl}\n  tasks:"),
        "others": {"prompts.jsonl": rows},
    }


ROW = '{"review": "Fine.", "label": "good"}\n'
MANIFEST = json.dumps({"format_version": 2, "config": "other.yaml", "stages": {}})
CHECK, RUN = "check job.yaml", "run job.yaml --name mine"
