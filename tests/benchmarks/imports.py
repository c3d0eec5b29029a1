"""Survey of `alfine import`: how many configs of another tool's repository become jobs that pass `alfine check`.

    python -m tests.benchmarks.imports FOLDER [FOLDER ...] [--under examples] [--verbose] [--run N]

FOLDER is a checkout of Ludwig, its documentation, LLaMA-Factory or axolotl. Configs are read from YAML files, from
blocks of YAML in Markdown and notebooks, and from texts and literals in Python files. Base models stay as they are
written. Data that is not on this disk is replaced by generated rows in the format that the config names
(`--data`). Counted are configs of supervised fine-tuning on text; `kind_of` says which those are, by the config alone.
`--run N` also trains N of the jobs, each of another form, for three steps on a tiny model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml

from pipelines.checks.job import check_job
from pipelines.config.job import Job, load_job
from pipelines.config.other_tools import LUDWIG, detect_tool
from pipelines.console.plain_text import count
from pipelines.console.reporter import quiet_libraries
from pipelines.data.templates import template_columns
from pipelines.errors import AlfineError
from pipelines.importing.draft import UNKNOWN, JobDraft
from pipelines.importing.importer import IMPORTERS, import_file
from pipelines.importing.yaml_writer import to_yaml
from tests.benchmarks.config_sources import configs_in
from tests.tiny import make_model

SFT = "supervised fine-tuning on text"
NUM_ROWS = 24

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


@dataclass(frozen=True)
class Config:
    """A config of a repository: its name, the text, and the path if it is a file of its own."""

    name: str
    text: str
    path: Path | None

    def source(self) -> Path:
        """The file to import: its own, next to which its data may be, or one in the working directory."""
        if self.path is None:
            Path("config.yaml").write_text(self.text)
        return self.path or Path("config.yaml")

    @property
    def form(self) -> tuple[str, ...]:
        """What makes the training of its job different: the weights, their precision, the form of the rows, tasks."""
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            job, _ = import_and_check(self.source())
        tasks = list(job.config["pipeline"]["tasks"].values())
        rows = "conversations" if any("messages" in task for task in tasks) else "prompts"
        quantized = ["quantized"] if "quantization" in job.config else []
        return (job.config.get("adapter", {}).get("type", "all weights"), *quantized, rows, count(len(tasks), "task"))


def survey(folder: Path, under: str, *, verbose: bool) -> list[Config]:
    """Prints the outcome of every config of a folder. Returns those of supervised fine-tuning that pass."""
    kinds, passed, failed = Counter[str](), [], 0
    unknown_keys = Counter[str]()
    for config in (Config(*parts) for parts in configs_in(folder, under)):
        if (tool := tool_of(config.text)) is None:
            continue
        kind = kind_of(tool, yaml.safe_load(config.text))
        kinds[kind] += 1
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            try:
                draft, _ = import_and_check(config.source())
                outcome = "passes"
                unknown_keys.update(str(key[-1]) for key, reason in draft.dropped.items() if reason == UNKNOWN)
            except AlfineError as error:
                outcome = str(error.problems[0].message)
        if kind == SFT and outcome == "passes":
            passed.append(config)
        failed += kind == SFT and outcome != "passes"
        if verbose or (kind == SFT and outcome != "passes"):
            print(f"{config.name}  [{kind}]  {outcome}")
    total = len(passed) + failed
    print(f"{folder.name}: {total} configs of {SFT}, {len(passed)} pass ({100 * len(passed) / max(total, 1):.0f} %)")
    print(f"  all kinds: {dict(kinds)}")
    print(f"  dropped as unknown: {dict(unknown_keys.most_common(40))}")
    return passed


def run_some(configs: list[Config], number: int) -> None:
    """Trains `number` jobs that differ from each other for a few steps on a tiny model, and prints how each ends."""
    forms = {config: config.form for config in configs} if number else {}
    seen: set[str] = set()
    for _ in range(min(number, len(forms))):
        config = max(forms, key=lambda config: len(set(forms[config]) - seen))
        form = forms.pop(config)
        seen.update(form)
        with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
            draft, _ = import_and_check(config.source())
            make_model(Path("model"), max_position_embeddings=65536)
            Path("job.yaml").write_text(to_yaml(for_tiny_model(draft.config), {}, []))
            command = [sys.executable, "-m", "pipelines.cli", "run", "job.yaml", "--name", "run"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            ended = "report written" if Path("runs/run/report.json").exists() else done.stderr.strip().split("\n")[-1]
            print(f"{config.name}  [{', '.join(form)}]  exit {done.returncode}  {ended}", flush=True)


def for_tiny_model(config: dict[str, Any]) -> dict[str, Any]:
    """The job for a few steps with the model in the folder `model`."""
    trainer = {key: value for key, value in config["trainer"].items() if key not in ("epochs", "train_steps")}
    pipeline = {key: value for key, value in config["pipeline"].items() if key != "chat_template_kwargs"}
    changed = {
        **config,
        "base_model": "model",
        "pipeline": {**pipeline, "forgetting": "none"},
        "trainer": {**trainer, "train_steps": 3},
        # The tokenizer of the tiny model has a token per byte.
        "preprocessing": {**config.get("preprocessing", {}), "global_max_sequence_length": 60000},
        "generation": {**config.get("generation", {}), "max_new_tokens": 400},
    }
    if "target_modules" in config.get("adapter", {}):
        changed["adapter"] = {**config["adapter"], "target_modules": ["q_proj", "v_proj"]}
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--under", default="")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--run", type=int, default=0, metavar="N", help="train N jobs of different forms")
    args = parser.parse_args()
    quiet_libraries()
    for folder in args.folders:
        passed = survey(folder.resolve(), args.under, verbose=args.verbose)
        run_some(passed, args.run)


if __name__ == "__main__":
    main()
