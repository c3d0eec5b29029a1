"""The model card of an export, README.md: what was trained, measured, forgotten and checked, from the run's report.

The metadata at its top are those of the Hub, with the results as `model-index`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipelines.data.hub_files import HubDataset
from pipelines.exporting.portable import portable, portable_command
from pipelines.exporting.records import ExportRecord
from pipelines.exporting.source import ExportSource
from pipelines.exporting.summary import answers_line, task_line
from pipelines.registry import lazy_import
from pipelines.report.columns import retention_columns, task_columns
from pipelines.report.few_shot import worth_of_tuning
from pipelines.report.formatting import joined, printable
from pipelines.report.markdown import code_span, command_block, escape, table
from pipelines.report.plots import dot_plot_png
from pipelines.report.results import Analysis
from pipelines.report.summaries import headline, retention_summary, task_summary, training_summary

if TYPE_CHECKING:
    import huggingface_hub
else:
    huggingface_hub = lazy_import("huggingface_hub")  # 0.3 s that an error in the arguments does not need

CARD, PLOT = "README.md", "scores.png"
UNKNOWN = "unknown"
PACKAGED_LICENSES = {"smollm2-135m-instruct": "apache-2.0"}
"""The licenses of packaged models, as the Hub names them."""


def write_model_card(source: ExportSource, analysis: Analysis, record: ExportRecord, folder: Path) -> None:
    """Writes README.md and the picture of the scores to the export's folder."""
    picture = dot_plot_png(list(analysis.tasks.values()))
    if picture:
        (folder / PLOT).write_bytes(picture)
    text = render(source, analysis, record, has_picture=bool(picture))
    # A model can generate unpaired surrogates, which UTF-8 cannot encode: they become "?".
    (folder / CARD).write_bytes(text.encode("utf-8", errors="replace"))


def render(source: ExportSource, analysis: Analysis, record: ExportRecord, has_picture: bool) -> str:
    """The text of README.md."""
    license_name = base_license(source)
    sections = [
        f"---\n{_metadata(source, analysis, record, license_name)}\n---",
        f"# {escape(source.run.name)}",
        _summary(source, analysis, record),
        *_results(analysis, has_picture),
        *_forgotten(analysis),
        *_use(source, record),
        *_limits(analysis),
        *_training(source, analysis),
        *_check(record),
        *_license(license_name),
    ]
    return "\n\n".join(sections) + "\n"


# --- metadata ---------------------------------------------------------------------------------------


def base_license(source: ExportSource) -> str:
    """The license of the base as the Hub names it: from the model card in its folder; UNKNOWN if that has none."""
    if source.job.base_model in PACKAGED_LICENSES:
        return PACKAGED_LICENSES[source.job.base_model]
    card = source.starting_model / CARD
    if source.job.pipeline.continue_from is not None or not card.is_file():
        return UNKNOWN
    try:
        match = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text(encoding="utf-8"), re.DOTALL)
        name = yaml.safe_load(match[1]).get("license") if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return UNKNOWN
    return name if isinstance(name, str) and re.fullmatch(r"[a-z0-9.+-]+", name) else UNKNOWN


def _metadata(source: ExportSource, analysis: Analysis, record: ExportRecord, license_name: str) -> str:
    """The YAML of the Hub."""
    values: dict[str, Any] = {}
    if record.base.on_hub:
        values |= {
            "base_model": record.base.name,
            "base_model_relation": "adapter" if record.target == "adapter" else "finetune",
        }
    if record.target in ("adapter", "merged"):
        values["library_name"] = "peft" if record.target == "adapter" else "transformers"
    datasets = sorted({HubDataset.parse(name).name for name in analysis.manifest.hub_data})
    card = huggingface_hub.ModelCardData(
        license=license_name,
        pipeline_tag="text-generation",
        tags=["alfine", *(["gguf"] if record.target in ("gguf", "ollama") else []), *analysis.strategies],
        datasets=datasets or None,
        model_name=source.run.name,
        eval_results=[
            huggingface_hub.EvalResult(
                task_type="text-generation",
                dataset_type=name,
                dataset_name=name,
                dataset_split="test",
                metric_type=task.metric.name.replace(":", "."),
                metric_name=task.metric.title,
                metric_value=round(task.comparison.tuned, 4),
            )
            for name, task in analysis.tasks.items()
        ],
        **values,
    )
    return str(card.to_yaml()).strip()


# --- sections ---------------------------------------------------------------------------------------


def _summary(source: ExportSource, analysis: Analysis, record: ExportRecord) -> str:
    kinds = {
        "adapter": "An adapter (PEFT)",
        "merged": "A model",
        "gguf": "A model for llama.cpp (GGUF)",
        "ollama": "A model for Ollama (GGUF)",
    }
    precision = f", {record.dtype}" if record.dtype else ""
    notes = "".join(f" {escape(note)}" for note in record.notes)
    tasks = joined([escape(task) for task in analysis.tasks])
    worth = "".join(f" {escape(sentence)}" for sentence in worth_of_tuning(analysis))
    return (
        f"{kinds[record.target]}{precision}, fine-tuned with alfine on {tasks}. "
        f"{source.base.description}{notes}\n\n**{escape(headline(analysis))}**{worth}"
    )


def _results(analysis: Analysis, has_picture: bool) -> Iterable[str]:
    yield "## Results"
    yield "\n".join(f"- **{escape(name)}** {escape(task_summary(task))}" for name, task in analysis.tasks.items())
    yield "\n".join(table(task_columns(analysis.models, analysis.tasks.values()), analysis.tasks.values()))
    yield (
        "Both models completed the same test rows, and each row is compared with itself. Intervals are 95 % intervals; "
        "p-values are corrected for the number of tasks (Holm)."
    )
    if has_picture:
        yield f"![Mean score per task, from the base to the tuned model]({PLOT})"


def _forgotten(analysis: Analysis) -> Iterable[str]:
    yield "## What it forgot"
    if not analysis.retention:
        yield "It was not measured: the run had no retention evals."
        return
    yield escape(retention_summary(analysis))
    yield "\n".join(table(retention_columns(analysis.models), analysis.retention.values()))
    if analysis.strategies:
        yield escape(f"Strategies against forgetting: {', '.join(analysis.strategies)}.")


def _use(source: ExportSource, record: ExportRecord) -> Iterable[str]:
    yield "## Intended use"
    tasks = joined([escape(task) for task in source.job.pipeline.tasks])
    yield f"The tasks that it was trained on: {tasks}. Prompts should have the form of the training rows:"
    for name, task in source.job.pipeline.tasks.items():
        system = source.job.system_prompt(name)
        title = f"**{escape(name)}**" + (f", with the system prompt {code_span(system)}" if system else "")
        form = f"Conversations, as in the column {code_span(str(task.messages))}."
        form = fenced(task.prompt) if task.prompt else form
        yield f"{title}\n\n{form}"
    if source.prompt_format.template is None:
        yield "Prompts are plain text, without a chat template."
    yield USE[record.target](source, record)


def _transformers_use(source: ExportSource, record: ExportRecord) -> str:
    revision = f', revision="{record.base.revision}"' if record.base.revision else ""
    if record.target == "adapter":
        loading = (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{record.base.name}"{revision})\n'
            'model = PeftModel.from_pretrained(base, "FOLDER")\n'
        )
        settings = 'settings = GenerationConfig.from_pretrained("FOLDER")\n'
        call = "**inputs, generation_config=settings"
    else:
        loading = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")\n'
        )
        settings, call = "", "**inputs"
    system = _common_system(source)
    if source.prompt_format.template is None:
        inputs = 'inputs = tokenizer("PROMPT", return_tensors="pt")\n'
    else:
        turns = (f'{{"role": "system", "content": {system!r}}}, ' if system else "") + (
            '{"role": "user", "content": "PROMPT"}'
        )
        inputs = (
            f"messages = [{turns}]\n"
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
            ")\n"
        )
    return (
        "FOLDER is the folder of this file, or its id on the Hub:\n\n```python\n"
        f'{loading}tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n{settings}{inputs}'
        f"output = model.generate({call})\n"
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))\n```'
    )


def _common_system(source: ExportSource) -> str | None:
    prompts = {source.job.system_prompt(task) for task in source.job.pipeline.tasks}
    return prompts.pop() if len(prompts) == 1 else None


def _gguf_use(source: ExportSource, record: ExportRecord) -> str:
    file = next(file.name for file in record.files if file.name.endswith(".gguf"))
    system = _common_system(source)
    command = ["llama-cli", "-m", file, "-cnv", "--temp", "0", "--repeat-penalty", "1"]
    command += ["--system-prompt", system] if system else []
    return command_block(shlex.join(command))


def _ollama_use(source: ExportSource, record: ExportRecord) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", source.run.name.lower()).strip("-") or "tuned"
    return f"In the folder of this file:\n\n```\nollama create {name} -f Modelfile\nollama run {name}\n```"


USE = {"adapter": _transformers_use, "merged": _transformers_use, "gguf": _gguf_use, "ollama": _ollama_use}


def _limits(analysis: Analysis) -> Iterable[str]:
    yield "## Limits"
    lines = [
        f"- **{escape(name)}** {task.comparison.n:,} test rows."
        + "".join(f" {escape(caveat)}" for caveat in task.caveats)
        for name, task in analysis.tasks.items()
    ]
    lines.append("- Nothing else was measured: not other tasks or languages, not safety, bias or factual accuracy.")
    yield "\n".join(lines)


def _training(source: ExportSource, analysis: Analysis) -> Iterable[str]:
    manifest = analysis.manifest
    yield "## Training"
    rows = ["| task | training rows | validation | test | file | SHA-256 |", "|---|--:|--:|--:|---|---|"]
    for name, data in manifest.data.items():
        file = code_span(Path(data.file).name) if data.file else ""
        rows.append(
            f"| {escape(name)} | {data.train:,} | {data.validation:,} | {data.test:,} | {file} | {data.sha256[:16]} |"
        )
    yield "\n".join(rows)
    yield escape(training_summary(analysis))
    yield f"Seed {manifest.seed}. The command:"
    yield command_block(portable_command(manifest.command))
    config = yaml.safe_dump(portable(analysis.config), sort_keys=False, allow_unicode=True).rstrip()
    yield f"<details><summary>The config with all defaults</summary>\n\n{fenced(config, 'yaml')}\n\n</details>"
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield escape(
        f"{manifest.hardware.cpu}, {manifest.hardware.gpu or 'no GPU'}, {manifest.hardware.dtype}. {versions}."
    )


def _check(record: ExportRecord) -> Iterable[str]:
    yield "## Check of this export"
    check = record.check
    if check is None:
        yield "It was not checked."
        return
    versions = ", ".join(f"{name} {version}" for name, version in check.engine_versions.items())
    yield (
        f"**{'Passed' if check.passed else 'Failed'}.** It was loaded by {versions}, without alfine, and asked "
        f"{check.rows} test prompts of the run; its answers are compared with {check.reference}."
    )
    lines = [
        f"prompts: {check.equal_prompts} of {check.rows} with the same tokens",
        answers_line(check),
        *(task_line(name, task) for name, task in check.tasks.items()),
        *(f"failed: {problem}" for problem in check.problems),
    ]
    yield "\n".join(f"- {escape(line)}" for line in lines)


def _license(license_name: str) -> Iterable[str]:
    yield "## License"
    if license_name == UNKNOWN:
        yield (
            "Unknown: the base's model card was not at hand. Write the base's license into `license:` at the top of "
            "this file, and check that the licenses of the training data allow this use."
        )
    else:
        yield (
            f"The base has the license {license_name}. The licenses of the training data are not known here; check "
            "that they allow this use."
        )


def fenced(text: str, language: str = "") -> str:
    """A block of code, fenced with more backticks than the text has in a row."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{printable(text)}\n{fence}"
