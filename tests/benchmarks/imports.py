"""Survey of `alfine import`: how many configs of another tool's repository become jobs that pass `alfine check`.

    python -m tests.benchmarks.imports FOLDER [FOLDER ...] [--under examples] [--verbose]

FOLDER is a checkout of Ludwig, its documentation, LLaMA-Factory or axolotl. Configs are read from YAML files, from
blocks of YAML in Markdown and notebooks, and from texts and literals in Python files. Base models stay as they are
written. Data that is not on this disk is replaced by twelve generated rows in the format that the config names
(`--data`). Counted are configs of supervised fine-tuning on text; `kind_of` says which those are, by the config alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml

from pipelines.checks.job import check_job
from pipelines.config.job import Job, load_job
from pipelines.config.other_tools import LUDWIG, detect_tool
from pipelines.data.templates import template_columns
from pipelines.errors import AlfineError
from pipelines.importing.draft import UNKNOWN, JobDraft
from pipelines.importing.importer import IMPORTERS, import_file
from pipelines.importing.yaml_writer import to_yaml
from tests.benchmarks.config_sources import configs_in

SFT = "supervised fine-tuning on text"
NUM_ROWS = 12


# --- the kinds of configs ----------------------------------------------------------------------------


def tool_of(text: str) -> str | None:
    """The tool that a config is written for; None if the text is no config of a tool that can be imported."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        return None
    tool = detect_tool(config)
    if tool == LUDWIG:
        return tool if config.get("model_type") == "llm" else None
    return tool if any(importer.tool == tool for importer in IMPORTERS.values()) else None


def kind_of(tool: str, config: dict[str, Any]) -> str:
    """What a config trains, from its own keys."""
    if tool == LUDWIG:
        return _ludwig_kind(config)
    return _axolotl_kind(config) if tool == "an axolotl" else _llama_factory_kind(config)


def _ludwig_kind(config: dict[str, Any]) -> str:
    kind = (config.get("trainer") or {}).get("type") or "none"
    if config.get("is_multimodal"):
        return "multimodal"
    if not config.get("input_features") or not config.get("output_features"):
        return "a part of a config"
    types = [feature.get("type") for key in ("input_features", "output_features") for feature in config[key]]
    if kind == "none" and config.get("adapter") and set(types) == {"text"}:
        return SFT  # the trainer is set elsewhere in the code
    return SFT if kind == "finetune" else "no training" if kind == "none" else "preferences"


def _axolotl_kind(config: dict[str, Any]) -> str:
    datasets = config.get("datasets") or []
    types = [str(entry.get("type")) for entry in datasets if isinstance(entry, dict)]
    if config.get("rl") or config.get("reward_model") or config.get("process_reward_model"):
        return "preferences or rewards"
    if config.get("processor_type"):
        return "multimodal"
    if config.get("pretraining_dataset") or (types and all(kind in ("pretrain", "completion") for kind in types)):
        return "pretraining"
    return SFT if config.get("base_model") and types else "no training"


def _llama_factory_kind(config: dict[str, Any]) -> str:
    names = str(config.get("dataset") or config.get("train_dataset") or "")
    if config.get("stage", "sft") != "sft" or "dpo" in names:
        return "preferences or pretraining"
    if re.search("mllm|multimodal|llava|rlhf_v", names):
        return "multimodal"
    return SFT if names and not (config.get("do_predict") and not config.get("do_train")) else "no training"


# --- import, check and training ----------------------------------------------------------------------


def import_and_check(path: Path) -> tuple[JobDraft, Job]:
    """Imports a config, with generated rows for data that is missing, and checks the job."""
    try:
        draft = import_file(path)
    except AlfineError as error:
        if "--data" not in str(error):
            raise
        draft = import_file(path, ("rows.jsonl",))
    options = []
    for name, task in draft.config["pipeline"]["tasks"].items():
        files = [task["data"]] if isinstance(task["data"], str) else list(task["data"].values())
        if not all(Path(file).exists() for file in files):
            Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_for(task)))
            options.append(f"{name}={name}.jsonl")
    draft = import_file(path, tuple(options)) if options else draft
    Path("job.yaml").write_text(to_yaml(draft.config, draft.comments, []))
    job = load_job("job.yaml")
    check_job(job)
    return draft, job


def rows_for(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with the columns that a task names."""
    if column := task.get("messages"):
        extra = {task["tools"]: "[]"} if "tools" in task else {}
        return [{column: _conversation(index), **extra} for index in range(NUM_ROWS)]
    templates = [str(task[key]) for key in ("prompt", "completion", "system") if key in task]
    if task.get("template") == "jinja":
        parsed = map(jinja2.Environment().parse, templates)
        columns = {name for tree in parsed for name in jinja2.meta.find_undeclared_variables(tree)}
    else:
        columns = {name for template in templates for name in template_columns(template)}
    columns = columns or {"instruction", "input", "output"}  # the job detects the format of its rows
    return [{name: f"{name} number {index}" for name in sorted(columns)} for index in range(NUM_ROWS)]


def _conversation(index: int) -> list[dict[str, str]]:
    turns = [("user", f"question {index}"), ("assistant", f"answer {index}")] * 2
    return [{"role": role, "content": f"{text} of turn {turn}"} for turn, (role, text) in enumerate(turns)]


def survey(folder: Path, under: str, *, verbose: bool) -> list[tuple[str, str]]:
    """Prints the outcome of every config of a folder. Returns the name and the text of those that pass."""
    kinds, passed, failed = Counter[str](), [], []
    unknown_keys = Counter[str]()
    for name, text, path in configs_in(folder, under):
        if (tool := tool_of(text)) is None:
            continue
        kind = kind_of(tool, yaml.safe_load(text))
        kinds[kind] += 1
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            if path is None:
                path = Path("config.yaml")
                path.write_text(text)
            try:
                draft, _ = import_and_check(path)
                outcome = "passes"
                unknown_keys.update(str(key[-1]) for key, reason in draft.dropped.items() if reason == UNKNOWN)
            except AlfineError as error:
                outcome = str(error.problems[0].message)
            os.chdir("/")
        if kind == SFT:
            (passed if outcome == "passes" else failed).append((name, text if outcome == "passes" else outcome))
        if verbose or (kind == SFT and outcome != "passes"):
            print(f"{name}  [{kind}]  {outcome}")
    total = len(passed) + len(failed)
    print(f"{folder.name}: {total} configs of {SFT}, {len(passed)} pass ({100 * len(passed) / max(total, 1):.0f} %)")
    print(f"  all kinds: {dict(kinds)}")
    print(f"  dropped as unknown: {dict(unknown_keys.most_common(40))}")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--under", default="")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    for folder in args.folders:
        survey(folder.resolve(), args.under, verbose=args.verbose)


if __name__ == "__main__":
    main()
