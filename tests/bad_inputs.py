"""Bad inputs as a user would make them, and what the command line prints for each.

`python -m tests.bad_inputs` writes docs/bad_inputs.md again; test_bad_inputs.py fails while page and program differ.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from click.testing import CliRunner
from safetensors.numpy import save

from pipelines.cli import main
from tests.bad_configs import GOOD as GOOD_CONFIG
from tests.config.mistakes import MISTAKES

PAGE = Path(__file__).parents[1] / "docs" / "bad_inputs.md"

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
    json.dumps({"review": f"Cup number {n} is {'fine' if n % 2 else 'cracked'}.", "label": "good" if n % 2 else "bad"})
    + "\n"
    for n in range(20)
)


def tested(tests: Any) -> str:
    """The good rows with that column `tests` in each."""
    return "".join(json.dumps({**json.loads(line), "tests": tests}) + "\n" for line in ROWS.splitlines())


@dataclass(frozen=True)
class Case:
    """Files in an empty folder, a command in it; `fault` is what the machine does wrong, for no other cause, `machine` a
    variable of its environment that is wrong."""

    title: str
    command: str | list[str]
    config: str | bytes | None = GOOD
    rows: str | bytes | None = ROWS
    others: dict[str, str | bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    fault: OSError | None = None
    machine: dict[str, str] = field(default_factory=dict)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def own_metric(module: str, body: str, takes: str = "completion, reference, row") -> dict[str, Any]:
    """A config whose metric is a function of the folder. Python keeps a module, so each case has another."""
    return {
        "config": changed("metric: exact_match", f"metric: {module}:f"),
        "others": {f"{module}.py": f"def f({takes}):\n    {body}\n"},
    }


def forgetting(value: str) -> str:
    return GOOD.replace("  tasks:", f"  forgetting: {value}\n  tasks:")


def guard(kind: str, rows: str = "", more: str = "") -> dict[str, Any]:
    """A config with one guard, and the guard's file."""
    return {
        "config": forgetting(f"{{evals: {{mine: {{kind: {kind}, data: guard.jsonl{more}}}}}}}"),
        "others": {"guard.jsonl": rows},
    }


def model(**files: str | bytes) -> dict[str, Any]:
    """A config whose base model is a folder with these files: `config` is config.json, `weights` model.safetensors."""
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
    """A config whose base model is a folder that could be a Llama of two layers, but for what is given."""
    config = json.dumps({"model_type": "llama", "vocab_size": 8, "num_hidden_layers": 2, **(settings or {})})
    shapes = {
        "model.embed_tokens.weight": (8, 2),
        **{f"model.layers.{layer}.mlp.up_proj.weight": (2, 2) for layer in range(2)},
    }
    whole = save({name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()})
    parts = {"weights": whole if weights is None else weights, "tokenizer": "{}", **files}
    return model(config=config, **{name: part for name, part in parts.items() if part != b""})


WEIGHTS = save({"model.embed_tokens.weight": np.zeros((8, 2), dtype=np.float16)})


def with_module(name: str) -> dict[str, Any]:
    """A config whose adapter names q_proj and another module, and a base with the headers of its weights."""
    names = [f"model.layers.0.self_attn.{one}.weight" for one in ("q_proj", "v_proj")]
    header = json.dumps({one: {"dtype": "F32", "shape": [0, 8], "data_offsets": [0, 0]} for one in names}).encode()
    files = model(config='{"model_type": "llama"}', weights=len(header).to_bytes(8, "little") + header)
    config = files["config"].replace("{type: lora}", f"{{type: lora, target_modules: [q_proj, {name}]}}")
    return {"config": config, "others": {**files["others"], "model/tokenizer.json": "{}"}}


def base(name: str) -> str:
    return changed("smollm2-135m-instruct", name)


def csv(text: str | bytes) -> dict[str, Any]:
    return {"config": changed("rows.jsonl", "rows.csv"), "rows": None, "others": {"rows.csv": text}}


def probes(rows: str) -> dict[str, Any]:
    return {
        "config": GOOD.replace("  tasks:", "  report: {sample_prompts: probes.jsonl}\n  tasks:"),
        "others": {"probes.jsonl": rows},
    }


PROGRESS = re.compile(r"^(?!error: ).*(: started|: done in \d|: interrupted after \d| so far|still running)")
"""What was done before the mistake was found."""
ROW = '{"review": "Fine.", "label": "good"}\n'
MANIFEST = json.dumps({"format_version": 1, "config": "other.yaml", "stages": {}})
CHECK, RUN = "check job.yaml", "run job.yaml --name mine"
CASES = [
    Case("missing config", CHECK, config=None),
    Case("config is not UTF-8", CHECK, config=GOOD.replace("Positive", "Café").encode("latin-1")),
    Case("broken YAML", CHECK, config=changed("metric: exact_match", "metric: [label")),
    Case("tab in YAML", CHECK, config=changed("  tasks:", "\ttasks:")),
    Case("empty config", CHECK, config=""),
    Case("unknown key, top level", CHECK, config=changed("base_model:", "basemodel:")),
    Case("unknown key in trainer", CHECK, config=changed("epochs: 1", "epochs: 1, lerning_rate: 0.1")),
    Case("unknown key, deep", CHECK, config=changed("epochs: 1", "learning_rate_scheduler: {warmup: 0.1}")),
    Case(
        "a warm-up longer than the training",
        CHECK,
        config=changed("epochs: 1", "epochs: 2, learning_rate_scheduler: {warmup_evaluations: 9}"),
    ),
    Case(
        "a plateau that no evaluation can see",
        CHECK,
        config=changed("epochs: 1", "learning_rate_scheduler: {reduce_on_plateau: 1}"),
    ),
    Case(
        "a plateau without validation rows",
        CHECK,
        config=changed("epochs: 1", "learning_rate_scheduler: {reduce_on_plateau: 1}").replace(
            "  tasks:", "  split: {validation: 0}\n  tasks:"
        ),
    ),
    Case(
        "a cycle of one step",
        CHECK,
        config=changed("epochs: 1", "train_steps: 1, learning_rate_scheduler: {decay: one_cycle}"),
    ),
    Case(
        "an 8-bit optimiser's old setting",
        CHECK,
        config=changed("epochs: 1", "optimizer: {type: adamw_8bit, percentile_clipping: 100}"),
    ),
    Case("unknown key in a task", CHECK, config=changed("metric:", "metrics:")),
    Case("wrong type", CHECK, config=changed("epochs: 1", "epochs: many")),
    Case(
        "wrong type in pipeline",
        CHECK,
        config=changed("metric: exact_match", "metric: exact_match\n      max_new_tokens: few"),
    ),
    Case(
        "several mistakes",
        CHECK,
        config=changed("epochs: 1", "epochs: many, lerning_rate: 1").replace("metric:", "metrics:"),
    ),
    Case("override of an unknown key", "run job.yaml trainer.epoch=2"),
    Case("unknown metric", CHECK, config=changed("metric: exact_match", "metric: rogue")),
    Case("own metric that is not there", CHECK, config=changed("metric: exact_match", "metric: mine:score")),
    Case("own metric that raises", CHECK, **own_metric("raises", "return row['missing']")),
    Case("own metric that returns a text", CHECK, **own_metric("a_text", "return 'good'")),
    Case("own metric that returns NaN", CHECK, **own_metric("not_a_number", "return float('nan')")),
    Case(
        "own metric that fails on an empty completion",
        CHECK,
        **own_metric("share", "return len(reference) / len(completion)"),
    ),
    Case("own metric that takes two arguments", CHECK, **own_metric("two", "return 1", "completion, reference")),
    Case(
        "normalize without labels",
        CHECK,
        config=changed("metric: exact_match", "metric: rouge\n      normalize: false"),
    ),
    Case("unknown base model", RUN, config=changed("smollm2-135m-instruct", "smolm2-135m-instruct")),
    Case(
        "base model is an empty folder", RUN, config=changed("smollm2-135m-instruct", "./model"), others={"model/x": ""}
    ),
    Case("data file missing", CHECK, rows=None),
    Case("data file is not UTF-8", CHECK, rows=ROWS.replace("fine", "schön").encode("latin-1")),
    Case("JSON broken at a line", CHECK, rows=ROWS.replace('cracked."', "cracked.", 1)),
    Case("JSON line without an object", CHECK, rows=ROWS + "[1, 2]\n"),
    Case(
        "CSV with a ragged row",
        CHECK,
        config=changed("rows.jsonl", "rows.csv"),
        rows=None,
        others={"rows.csv": "review,label\nGood cup,good\nBad, very bad cup,bad\n"},
    ),
    Case(
        "Parquet that is none",
        CHECK,
        config=changed("rows.jsonl", "rows.parquet"),
        rows=None,
        others={"rows.parquet": "x"},
    ),
    Case(
        "data in a form not read",
        CHECK,
        config=changed("rows.jsonl", "rows.xlsx"),
        rows=None,
        others={"rows.xlsx": "x"},
    ),
    Case("missing column", CHECK, config=changed("{review}", "{text}")),
    *(
        Case(f"unit tests: {title}", CHECK, config=changed("metric: exact_match", "metric: unit_tests"), rows=rows)
        for title, rows in {
            "none": ROWS,
            "a bare comparison": tested("f(1) == 2"),
            "a list of bare comparisons in a cell": tested("['f(1) == 2', 'f(2) == 3']"),
            "check that nobody calls": tested("def check(candidate):\n    assert candidate(1) == 2"),
            "an assert in parentheses": tested(["assert (f(1) == 2, 'wrong')"]),
            "asserts about their own values": tested("x = 2\nassert x == 2"),
            "inputs and outputs": tested({"inputs": ["1"], "outputs": ["2"]}),
            "pytest": tested("import pytest\ndef test_f():\n    with pytest.raises(ValueError):\n        f(-1)"),
            "no Python": tested(">>> f(1)\n2"),
        }.items()
    ),
    Case("no rows", CHECK, rows=""),
    Case("one row", CHECK, rows=ROWS.split("\n")[0] + "\n"),
    Case(
        "a row of 100 kB",
        "preview job.yaml",
        rows=ROWS + json.dumps({"review": "word " * 20_000, "label": "good"}) + "\n",
    ),
    Case("a row without a value", CHECK, rows=ROWS + '{"review": null, "label": "good"}\n'),
    Case("unknown split", CHECK, rows=ROWS + '{"review": "Fine.", "label": "good", "split": "dev"}\n'),
    Case("unknown strategy", CHECK, config=forgetting("ecw")),
    Case("a strategy's knob misspelt", CHECK, config=forgetting("{strategy: ewc, ewc: {wieght: 3}}")),
    Case("knobs of a strategy that is not used", CHECK, config=forgetting("{strategy: ewc, si: {weight: 3}}")),
    Case(
        "guard without rows",
        CHECK,
        config=forgetting("{evals: {mine: {kind: text_nll, data: none.jsonl}}}"),
        others={"none.jsonl": ""},
    ),
    Case(
        "guard of another form", CHECK, config=forgetting("{evals: {mine: {kind: multiple_choice, data: rows.jsonl}}}")
    ),
    Case("budget already spent", CHECK, config=forgetting("{eval_steps: 10, max_regression: {text: 0}}")),
    Case(
        "gate on no guard",
        CHECK,
        config=GOOD.replace("  tasks:", "  report: {gates: {txt: {max_drop: 1}}}\n  tasks:"),
    ),
    Case("going on from no run", RUN, config=GOOD.replace("  tasks:", "  continue_from: runs/first\n  tasks:")),
    Case("sweep of an unknown strategy", "sweep job.yaml --strategies none,ecw"),
    Case("name with a slash", "run job.yaml --name a/b"),
    Case("run folder of another config", RUN, others={"runs/mine/manifest.json": MANIFEST}),
    Case("damaged manifest", RUN, others={"runs/mine/manifest.json": "{"}),
    Case("report of no run", "report runs/none"),
    Case(
        "predict with a run that has no model",
        "predict runs/mine rows.jsonl",
        others={"runs/mine/manifest.json": MANIFEST},
    ),
    # the config's own file
    Case("config is a folder", CHECK, config=None, others={"job.yaml/x": ""}),
    Case("an override without a value", "check job.yaml trainer.epochs"),
    Case("an override that is no YAML", "check job.yaml adapter={type:"),
    Case("an override below a value", "check job.yaml trainer.epochs.more=1"),
    Case("an override of the wrong type", "check job.yaml trainer.learning_rate=fast"),
    Case("a config of another tool", CHECK, config="model: llama\ndatasets: [{path: x, type: alpaca}]\nlora_r: 8\n"),
    Case(
        "an axolotl config",
        CHECK,
        config="base_model: a/b\nmicro_batch_size: 2\nsequence_len: 2048\nval_set_size: 0.1\nbf16: true\nadapter: qlora\n",
    ),
    Case(
        "a torchtune config",
        CHECK,
        config="model: {_component_: x.y}\nloss: {_component_: z}\nbatch_size: 2\noutput_dir: x\n",
    ),
    Case(
        "a Ludwig config without pipeline",
        CHECK,
        config="model_type: llm\nbase_model: a/b\ninput_features: []\noutput_features: []\n",
    ),
    Case("an override of a task that is not there", "check job.yaml pipeline.tasks.review.weight=2"),
    Case("an override of a guard that is not there", "check job.yaml pipeline.forgetting.evals.txt.limit=5"),
    Case("an override of a bundled guard", "check job.yaml pipeline.forgetting.evals.text.limit=5"),
    Case("an override below a short form", "check job.yaml pipeline.forgetting=ewc pipeline.forgetting.ewc.weight=3"),
    Case("an override with nothing after it", "check job.yaml adapter="),
    Case(
        "an alias bomb",
        CHECK,
        config="a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}x]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    ),
    # rows
    Case("data is a folder", CHECK, rows=None, others={"rows.jsonl/x": ""}),
    Case("JSON array instead of lines", CHECK, rows=json.dumps([{"review": "Fine.", "label": "good"}] * 3, indent=1)),
    Case("single quotes", CHECK, rows=ROWS + "{'review': 'Fine.', 'label': 'good'}\n"),
    Case("comma behind the object", CHECK, rows=ROWS + ROW.replace("}", "},")),
    Case("two objects on a line", CHECK, rows=ROWS + ROW.strip() + ROW),
    Case("a line cut off", CHECK, rows=ROWS + ROW[:-12]),
    Case("not a number", CHECK, rows=ROWS + '{"review": NaN, "label": "good"}\n'),
    Case(
        "an empty prompt",
        CHECK,
        config=changed("Positive or negative?\\n", ""),
        rows=ROWS + '{"review": "  ", "label": "good"}\n',
    ),
    Case("an empty completion", CHECK, rows=ROWS + '{"review": "Fine.", "label": ""}\n'),
    Case("a column of another case", CHECK, config=changed("{review}", "{Review}")),
    Case("every row lacks the column", CHECK, rows="".join('{"text": "Fine.", "label": "good"}\n' for _ in range(9))),
    Case("a zip file named JSONL", CHECK, rows=b"PK\x03\x04\x14\x00\x00\x00\x08\x00\xd5\xa3"),
    Case("UTF-16 rows", CHECK, rows=ROWS.encode("utf-16")),
    Case(
        "a missing split file", CHECK, config=changed("data: rows.jsonl", "data: {train: rows.jsonl, test: test.jsonl}")
    ),
    Case("CSV without a header's name", CHECK, **csv("review,\nFine,good\n")),
    Case("CSV with a name twice", CHECK, **csv("review,review\nFine,good\n")),
    Case("CSV with a header alone", CHECK, **csv("review,label\n")),
    Case("CSV with semicolons", CHECK, **csv("review;label\nFine;good\n")),
    Case("CSV with a quote left open", CHECK, **csv('review,label\n"Fine,good\nBad,bad\n')),
    Case("CSV in Latin-1", CHECK, **csv("review,label\nCaf\xe9,good\n".encode("latin-1"))),
    Case("CSV with tabs", CHECK, **csv("review\tlabel\nFine\tgood\n")),
    Case("CSV with a name twice but for a space", CHECK, **csv("review, review\nFine, good\n")),
    Case("CSV of two files put together", CHECK, **csv("review,label\nFine,good\nreview,label\nBad,bad\n")),
    Case("CSV with the line ends of old Macs", CHECK, **csv("review,label\rFine,good\r")),
    Case("half a character", CHECK, rows=ROWS + '{"review": "Fine \\ud83d", "label": "good"}\n'),
    Case("a NUL character", CHECK, rows=ROWS + '{"review": "F\\u0000i\\u0000n\\u0000e", "label": "good"}\n'),
    Case("a raw tab in a text", CHECK, rows=ROWS + ROW.replace("Fine.", "Fine.\t")),
    Case("a number of 5,000 digits", CHECK, rows=ROWS + ROW.replace('"Fine."', "9" * 5000)),
    Case("a number beyond all floats", CHECK, rows=ROWS + ROW.replace('"Fine."', "1e999")),
    Case("infinity", CHECK, rows=ROWS + ROW.replace('"Fine."', "-Infinity")),
    Case("a name twice in one object", CHECK, rows=ROWS + ROW.replace("}", ', "label": "bad"}')),
    Case("lists without end", CHECK, rows=ROWS + ROW.replace('"Fine."', "[" * 5000 + "]" * 5000)),
    Case(
        "a conversation in a column",
        CHECK,
        config=changed("{review}", "{messages}"),
        rows='{"messages": [{"role": "user", "content": "Fine?"}], "label": "good"}\n' * 9,
    ),
    Case("a list in a column", CHECK, rows=ROWS + ROW.replace('"good"', '["good", "fair"]')),
    Case("an object in a column", CHECK, rows=ROWS + ROW.replace('"good"', '{"team": "good"}')),
    Case(
        "a column's name that cannot stand in braces",
        CHECK,
        config=changed("{review}", "{time}"),
        rows='{"time:utc": "Fine.", "label": "good"}\n' * 9,
    ),
    Case(
        "a column in the system turn",
        CHECK,
        config=changed("metric: exact_match", 'metric: exact_match\n      system: "Judge {review}."'),
    ),
    Case("the answer in the prompt", CHECK, config=changed("{review}", "{review} ({label})")),
    Case(
        "the answer in the prompt of a guard",
        CHECK,
        **guard("task", ROW, ', prompt: "{review} {label}", completion: "{label}"'),
    ),
    Case(
        "one file for two splits",
        CHECK,
        config=changed("data: rows.jsonl", "data: {train: rows.jsonl, test: rows.jsonl}"),
    ),
    Case("no file of test rows", CHECK, config=changed("data: rows.jsonl", "data: {train: rows.jsonl}")),
    Case(
        "a split column in a file of another split",
        CHECK,
        config=changed("data: rows.jsonl", "data: {train: rows.jsonl, test: test.jsonl}"),
        others={"test.jsonl": ROW.replace("}", ', "split": "train"}')},
    ),
    Case("a split by another name", CHECK, rows=ROWS.replace("}", ', "split": "val"}')),
    Case("no row in the test split", CHECK, rows=ROWS.replace("}", ', "split": "train"}')),
    Case("pipeline.split.test is 0", CHECK, config=GOOD.replace("  tasks:", "  split: {test: 0}\n  tasks:")),
    Case(
        "a cluster column that is not there",
        CHECK,
        config=changed("metric: exact_match", "metric: exact_match\n      cluster_by: cup"),
    ),
    Case(
        "a cluster column that is not there",
        CHECK,
        config=changed("metric: exact_match", "metric: exact_match\n      cluster_by: cup"),
    ),
    Case(
        "a cluster column without a value",
        CHECK,
        config=changed("metric: exact_match", "metric: exact_match\n      cluster_by: cup"),
        rows=ROWS.replace("}", ', "cup": null}'),
    ),
    Case(
        "unit tests under another name",
        CHECK,
        config=changed("metric: exact_match", "metric: unit_tests"),
        rows=ROWS.replace("}", ', "test": "assert f()"}'),
    ),
    # models
    Case("a model name with a typo", CHECK, config=base("smollm2-135m-instrct")),
    Case("a model folder that is not there", CHECK, config=base("./model")),
    Case("a model's file instead of its folder", CHECK, config=base("./rows.jsonl")),
    Case("a model folder without weights", CHECK, **model(config="{}")),
    Case("weights in a pickle", CHECK, **model(config="{}", pickle=b"\x80\x04K\x01.")),
    Case(
        "an adapter beside a base",
        CHECK,
        config=base("./model"),
        others={"model/config.json": "{}", "model/model.safetensors": "", "model/adapter_config.json": "{}"},
    ),
    Case(
        "an adapter as a base",
        CHECK,
        config=base("./model"),
        others={
            "model/adapter_config.json": '{"base_model_name_or_path": "owner/name"}',
            "model/adapter_model.safetensors": "",
        },
    ),
    Case("a module that the base does not have", CHECK, **with_module("q_prj")),
    Case("a block as a module", CHECK, **with_module("self_attn")),
    Case("config.json is none", CHECK, **model(config="{", weights=b"")),
    Case(
        "a model that brings code",
        CHECK,
        **model(
            config='{"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling.M"}}',
            weights=b"",
            code="print(1)",
        ),
    ),
    Case(
        "weights that are a link out", CHECK, **model(config="{}"), links={"model/model.safetensors": "/etc/hostname"}
    ),
    Case("a model without a tokenizer", "preview job.yaml", **model(config='{"model_type": "llama"}', weights=b"x")),
    Case(
        "weights that are a Git LFS pointer",
        CHECK,
        **llama("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    ),
    Case("weights cut off", CHECK, **llama(WEIGHTS[:-5])),
    Case("weights that are none", CHECK, **llama(b"not weights at all")),
    Case("shards without their index", CHECK, **llama(b"", shard=WEIGHTS)),
    Case(
        "a shard missing",
        CHECK,
        **llama(b"", shard=WEIGHTS, index='{"weight_map": {"a.weight": "model-00002-of-00002.safetensors"}}'),
    ),
    Case(
        "a shard that lacks a tensor",
        CHECK,
        **llama(b"", shard=WEIGHTS, index='{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
    ),
    Case("a layer without weights", CHECK, **llama(settings={"num_hidden_layers": 3})),
    Case("weights of another vocabulary", CHECK, **llama(settings={"vocab_size": 9})),
    Case("weights of a compiled model", CHECK, **llama(save({"_orig_mod.a": np.zeros(2)}))),
    Case("a GPTQ model", CHECK, **llama(settings={"quantization_config": {"quant_method": "gptq", "bits": 4}})),
    Case("an encoder-decoder", CHECK, **llama(settings={"model_type": "t5", "is_encoder_decoder": True})),
    Case("a model type that nobody knows", CHECK, **llama(settings={"model_type": "brandnew"})),
    Case(
        "a tokenizer that brings code",
        CHECK,
        **llama(tokenizer_config='{"auto_map": {"AutoTokenizer": ["tokenizing.T", null]}}'),
    ),
    Case("attention from the hub", CHECK, **llama(settings={"_attn_implementation": "owner/kernel"})),
    Case(
        "a chat template that drops the prompt",
        CHECK,
        **llama(tokenizer_config="{}", template="{{ messages[0]['role'] }}"),
    ),
    Case(
        "a chat template that drops the system turn",
        CHECK,
        **{
            **llama(tokenizer_config="{}", template="{{ messages[-1]['content'] }}"),
            "config": changed("smollm2-135m-instruct", "./model").replace("  tasks:", "  system: Be brief.\n  tasks:"),
        },
    ),
    Case(
        "a teacher without weights",
        CHECK,
        **{
            **model(config="{}"),
            "config": forgetting("{strategy: distill, distill: {teacher: ./model, apply_to: task}}"),
        },
    ),
    Case("trust_remote_code", CHECK, config=GOOD + "trust_remote_code: true\n"),
    # guards, probes
    Case("a guard's file missing", CHECK, config=forgetting("{evals: {mine: {kind: text_nll, data: none.jsonl}}}")),
    Case("a guard of an unknown kind", CHECK, **guard("multiple_choise", ROW)),
    Case(
        "a task guard whose unit tests assert nothing",
        CHECK,
        **guard(
            "task",
            '{"q": "Add.", "a": "x", "tests": "f(1) == 2"}\n',
            ', prompt: "{q}", completion: "{a}", metric: unit_tests',
        ),
    ),
    Case("a text guard without texts", CHECK, **guard("text_nll", ROW)),
    Case("an answers guard without instructions", CHECK, **guard("kl", ROW)),
    Case(
        "a choice that is not among them",
        CHECK,
        **guard("multiple_choice", '{"question": "1 + 1", "choices": ["1", "2"], "answer": 2}\n'),
    ),
    Case(
        "a single choice", CHECK, **guard("multiple_choice", '{"question": "1 + 1", "choices": ["2"], "answer": 0}\n')
    ),
    Case(
        "an answer as text",
        CHECK,
        **guard("multiple_choice", '{"question": "1 + 1", "choices": ["1", "2"], "answer": "2"}\n'),
    ),
    Case("a task guard without a prompt", CHECK, **guard("task", ROW)),
    Case("a task guard of another column", CHECK, **guard("task", ROW, ', prompt: "{text}", completion: "{label}"')),
    Case("probes without a prompt", CHECK, **probes('{"title": "free"}\n')),
    Case("probes with a bound that is a text", CHECK, **probes('{"prompt": "Why?", "max_new_tokens": "12"}\n')),
    Case("probes with a bound below 1", CHECK, **probes('{"prompt": "Why?", "max_new_tokens": -1}\n')),
    Case("probes with a title that is no text", CHECK, **probes('{"prompt": "Why?", "title": 1}\n')),
    Case("probes with half a character", CHECK, **probes('{"prompt": "Why \\ude00?"}\n')),
    Case("a guard with half a character", CHECK, **guard("text_nll", '{"text": "\\ud83d"}\n')),
    Case(
        "a replay file without answers",
        CHECK,
        config=forgetting("{strategy: replay, replay: {data: general.jsonl}}"),
        others={"general.jsonl": '{"prompt": "Why?"}\n'},
    ),
    Case(
        "a guard with an unknown metric",
        CHECK,
        **guard("task", ROW, ', prompt: "{review}", completion: "{label}", metric: rogue'),
    ),
    Case(
        "a guard with a loss as metric",
        CHECK,
        **guard("task", ROW, ', prompt: "{review}", completion: "{label}", metric: nll'),
    ),
    Case("probes with an unknown key", CHECK, **probes('{"prompt": "Why?", "max_tokens": 3}\n')),
    # commands
    Case("predict with no run", "predict runs/none rows.jsonl"),
    Case("examples of no run", "examples runs/none"),
    Case("comparison of one model", "compare runs/none"),
    Case("misspelt command", "chekc job.yaml"),
    Case("former name of a command", "show runs/mine"),
    Case("compare of two models and no prompts", "compare smollm2-135m-instruct smollm2-135m-instruct"),
    Case("compare with a metric that is not there", "compare runs/a runs/b --metric rogue"),
    Case("compare of two models with a task", "compare runs/a runs/b --task reviews"),
    Case(
        "manifest of another version",
        "report runs/mine",
        others={"runs/mine/manifest.json": '{"format_version": 9, "stages": {}}'},
    ),
    Case("manifest is a list", "report runs/mine", others={"runs/mine/manifest.json": "[]"}),
    Case("a manifest without its entries", "report runs/mine", others={"runs/mine/manifest.json": MANIFEST}),
    Case("an empty name", ["run", "job.yaml", "--name", ""]),
    Case("a hidden name", "run job.yaml --name .mine"),
    # the machine
    Case("no disk space", RUN, fault=OSError(28, "No space left on device", "runs/mine/config.yaml.partial")),
    Case("no write permission", RUN, fault=PermissionError(13, "Permission denied", "runs/mine")),
    Case("a cache that cannot be written", RUN, machine={"ALFINE_CACHE": "/proc/no/cache"}),
    Case("a cache with a file in its way", RUN, machine={"ALFINE_CACHE": "rows.jsonl"}),
    Case("a cache in nobody's home", RUN, machine={"ALFINE_CACHE": "~no-such-user/cache"}),
]


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    lines: list[str]
    left: list[str]
    """Files that the command left, beside the ones that it was given."""
    exception: BaseException | None


def outcome(case: Case) -> Outcome:
    """Runs the case in a folder of its own."""
    files: dict[str, str | bytes | None] = {"job.yaml": case.config, "rows.jsonl": case.rows, **case.others}
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        _fault(case.fault),
        mock.patch.dict(os.environ, case.machine),
    ):
        for name, content in files.items():
            if content is not None:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for name, target in case.links.items():
            Path(name).symlink_to(target)
        result = CliRunner().invoke(main, case.command if isinstance(case.command, list) else case.command.split())
        left = sorted(
            str(path) for path in Path().rglob("*") if path.is_file() and str(path) not in {**files, **case.links}
        )
    exception = None if isinstance(result.exception, SystemExit) else result.exception
    lines = [line for line in result.stderr.splitlines() if line and not PROGRESS.search(line)]
    return Outcome(result.exit_code, lines, left, exception)


@contextlib.contextmanager
def _fault(error: OSError | None) -> Iterator[None]:
    if error is None:
        yield
        return

    def fails(*_: Any, **__: Any) -> None:
        raise error

    # Whole files are written through fsync, folders made through mkdir.
    what = "mkdir" if isinstance(error, PermissionError) else "fsync"
    with mock.patch.object(os, what, fails), mock.patch("shutil.disk_usage", lambda _: mock.Mock(free=0)):
        yield


def written(config: str | bytes) -> str:
    """The lines that differ from the good config."""
    if isinstance(config, bytes):
        return repr(config)[:60] + "…"
    good = GOOD_CONFIG.splitlines()
    differing = [line.strip() for line in config.splitlines() if line not in good] or config.splitlines()
    return " ⏎ ".join(line if len(line) < 90 else line[:87] + "…" for line in differing[:4])


def cell(text: str) -> str:
    """Text as it is, in a table of Markdown."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("`", "\\`")


def page() -> str:
    """The tables as Markdown."""
    lines = [
        "# What a mistake prints",
        "",
        "Every row is run by the tests: one line for each mistake, on stderr, nothing half-written. "
        "Exit code 2 is the user's mistake, 1 the machine's.",
        "",
        "Written by `python -m tests.bad_inputs`.",
        "",
        "## Rows, models, guards, commands",
        "",
        "| what is wrong | command | it prints | exit |",
        "|---|---|---|---|",
    ]
    for case in CASES:
        done = outcome(case)
        command = case.command if isinstance(case.command, str) else " ".join(word or "''" for word in case.command)
        lines.append(f"| {case.title} | `alfine {command}` | {'<br>'.join(map(cell, done.lines))} | {done.exit_code} |")
    lines += [
        "",
        "## The YAML",
        "",
        "One change each in this config, then `alfine check job.yaml`; every exit code is 2.",
        "",
        "```yaml",
        GOOD_CONFIG.rstrip(),
        "```",
        "",
        "| what is wrong | the lines changed | it prints |",
        "|---|---|---|",
    ]
    for title, (config, _, _) in MISTAKES.items():
        done = outcome(Case(title, CHECK, config=config))
        assert done.exit_code == 2 and done.lines, title
        lines.append(f"| {title} | {cell(written(config))} | {'<br>'.join(map(cell, done.lines))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
