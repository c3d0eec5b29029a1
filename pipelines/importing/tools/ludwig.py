"""Plain Ludwig configs: `model_type: llm` with features and a prompt. Their sections are alfine's too."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from pipelines.config.key_hints import KeyHints
from pipelines.config.ludwig_checks import ludwig_faults
from pipelines.config.ludwig_unsupported import unsupported
from pipelines.config.messages import KeyPath, dotted, shorten
from pipelines.config.other_tools import LUDWIG
from pipelines.config.schema import ludwig_fields
from pipelines.importing.data_options import DataOptions, task_name
from pipelines.importing.draft import JobDraft
from pipelines.importing.importer import IMPORTERS, Importer
from pipelines.importing.target_modules import linear_modules

DEFAULT_TEMPLATE = "SAMPLE INPUT: {__sample__}\n\nUSER: Complete the following task: {__task__}\n\nASSISTANT:\n"
"""Ludwig's template for a prompt that has a task and no template (ludwig/data/prompt.py)."""
TRAINER_DEFAULTS: dict[str, Any] = {"epochs": 100, "batch_size": 1}
"""Ludwig's defaults of a fine-tuning that differ from alfine's."""
SPLIT_DEFAULT = [0.7, 0.1, 0.2]
"""Ludwig's fractions of training, validation and test rows."""
SECTIONS = ("adapter", "quantization", "preprocessing", "trainer", "generation", "backend", "model_parameters")
MAX_ROUNDS = 50
"""Rounds in which keys without effect are dropped: dropping one may leave another without effect."""
ONE_FEATURE = "a job has one prompt and one completion; write other columns into the templates"


def convert(draft: JobDraft, options: DataOptions) -> None:
    """Fills the draft. Raises ConfigError for a config that is not for a language model, or of another training."""
    _check_kind(draft)
    _convert_task(draft, options)
    _convert_split(draft)
    draft.put("base_model", _base_model(draft), "base_model")
    draft.account("model_type", "model_type")
    if draft.get("trust_remote_code") is False:
        draft.account("trust_remote_code", "trust_remote_code")
    _copy_sections(draft)
    _adapt_adapter(draft)
    _adapt_trainer(draft)
    _adapt_generation(draft)
    _drop_without_effect(draft)


def _check_kind(draft: JobDraft) -> None:
    if draft.get("model_type") != "llm":
        draft.refuse("only configs of model_type: llm can be imported; alfine fine-tunes language models", "model_type")
    if draft.get("is_multimodal"):
        draft.refuse("alfine trains only on text", "is_multimodal")
    kind = draft.get("trainer", "type")
    if kind not in (None, "none", "finetune"):
        message = f"{shorten(str(kind))} trains on preferences or rewards; alfine trains on prompts and completions"
        draft.refuse(message, "trainer", "type")
    for index, feature in enumerate(draft.items("input_features")):
        if isinstance(feature, Mapping) and feature.get("type", "text") not in ("text", "category", "number", "binary"):
            draft.refuse("alfine trains only on text", "input_features", index, "type")


def _base_model(draft: JobDraft) -> str:
    model = draft.get("base_model")
    if not isinstance(model, str):
        draft.refuse("expected a hub id or a folder", "base_model")
    return model


# --- the task ----------------------------------------------------------------------------------------


def _convert_task(draft: JobDraft, options: DataOptions) -> None:
    input_column = _feature_column(draft, "input_features")
    output_column = _feature_column(draft, "output_features")
    data = options.file_of("task", 1) or next(iter(options.by_task.values()), None)
    if data is None:
        draft.refuse("a Ludwig config does not name its data; add --data FILE")
    name = next(iter(options.by_task), None) or task_name(data.split(":")[1] if data.startswith("hub:") else data)
    options.file_of(name, 1)
    task = f"pipeline.tasks.{name}"
    draft.put(f"{task}.data", data, comment="--data")
    template, sources = _prompt_template(draft, input_column)
    feature: KeyPath = ("input_features", 0)
    uses_feature = f"{{{input_column}}}" in template
    draft.put(
        f"{task}.prompt", template, *sources, *([(*feature, "name"), (*feature, "column")] if uses_feature else [])
    )
    draft.drop("the template names its columns", (*feature, "name"), (*feature, "column"))
    target: KeyPath = ("output_features", 0)
    draft.put(f"{task}.completion", f"{{{output_column}}}", (*target, "name"), (*target, "column"))
    kind = draft.get(*target, "type", default="text")
    if kind in ("category", "binary"):
        draft.put(f"{task}.metric", "exact_match", (*target, "type"))
    draft.account(f"{task}.completion", (*target, "type"))
    draft.account(f"{task}.prompt", (*feature, "type"))
    draft.put("pipeline.chat_template", False, comment="as in Ludwig; true: the model's own chat template")


def _feature_column(draft: JobDraft, features: str) -> str:
    """The column of the only feature of a kind; further ones are dropped."""
    feature = draft.get(features, 0, default={})
    column = feature.get("column") or feature.get("name") if isinstance(feature, Mapping) else None
    if not isinstance(column, str):
        draft.refuse("expected a list of one feature with a name", features)
    if features == "output_features" and len(draft.items(features)) > 1:
        draft.refuse("several output features; write one config for each", features)
    for index in range(1, len(draft.items(features))):
        draft.drop(ONE_FEATURE, (features, index))
    draft.drop("alfine computes the loss of the completion itself", (features, 0, "loss"))
    reason = "the completion is compared as a whole"
    draft.drop(reason, (features, 0, "decoder"), (features, 0, "preprocessing", "fallback_label"))
    reason = "alfine tokenizes the text itself; the limit is preprocessing.global_max_sequence_length"
    for key in draft.section(features, 0, "preprocessing"):
        if key != "prompt":
            draft.drop(reason, (features, 0, "preprocessing", key))
    draft.drop("a language model has no encoder", (features, 0, "encoder"))
    return column


def _prompt_template(draft: JobDraft, input_column: str) -> tuple[str, list[KeyPath]]:
    """The template of the prompt with the task and the sample filled in, and the keys that it is made of."""
    prompt: KeyPath = ("prompt",)
    if not draft.get("prompt") and draft.get("input_features", 0, "preprocessing", "prompt"):
        prompt = ("input_features", 0, "preprocessing", "prompt")
    template, task = draft.get(*prompt, "template"), draft.get(*prompt, "task")
    if draft.is_on(*prompt, "retrieval"):
        draft.drop("the rows that retrieval puts into the prompt have no counterpart", (*prompt, "retrieval"))
    if template is None and task is None:
        return _filled("{__sample__}", {"__sample__": f"{{{input_column}}}"}), []
    if not isinstance(template, str | None) or not isinstance(task, str | None):
        draft.refuse("expected text", *prompt)
    literal_task = (task or "").replace("{", "{{").replace("}", "}}")
    values = {"__sample__": f"{{{input_column}}}", "__task__": literal_task, "__context__": ""}
    try:
        text = _filled(template or DEFAULT_TEMPLATE, values)
    except ValueError as error:
        draft.refuse(f"not a template ({error})", *prompt, "template")
    if "{__context__}" in (template or ""):
        draft.change((*prompt, "template"), "{__context__} is left out, because nothing is retrieved")
    elif any(spec for _, _, spec, _ in string.Formatter().parse(template or "")):
        draft.change((*prompt, "template"), "numbers are written as they are in the data, without a format")
    if template is None:
        draft.note("the prompt is Ludwig's template for a task, with the task filled in")
    return text, [(*prompt, "template"), (*prompt, "task")]


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its special fields replaced, and without formats of numbers."""
    parts: list[str] = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(literal.replace("{", "{{").replace("}", "}}"))
        if name is not None:
            parts.append(values.get(name, f"{{{name}}}"))
    return "".join(parts)


def _convert_split(draft: JobDraft) -> None:
    split: KeyPath = ("preprocessing", "split")
    kind = draft.get(*split, "type", default="random")
    fractions = draft.get(*split, "probabilities", default=SPLIT_DEFAULT)
    column = draft.get(*split, "column", default="split")
    if not (
        isinstance(fractions, list) and len(fractions) == 3 and all(isinstance(part, int | float) for part in fractions)
    ):
        draft.refuse("expected three fractions, of training, validation and test rows", *split, "probabilities")
    if kind == "fixed":
        draft.account("the column split", (*split, "type"), (*split, "column"))
        if column != "split":
            draft.change((*split, "column"), f"alfine reads the column split; rename {shorten(str(column))} to split")
        draft.note("in the column split, write train, validation and test instead of 0, 1 and 2")
        draft.drop("a split column has no fractions", (*split, "probabilities"))
        return
    if kind != "random":
        draft.change((*split, "type"), f"rows are split at random, not by {shorten(str(kind))}")
        draft.drop("rows are split at random", (*split, "column"))
    validation, test = fractions[1:]
    if not test:
        test = min(0.1, fractions[0] / 2)
        draft.change(
            (*split, "probabilities"), "the report compares on test rows, so a part of the rows is kept for it"
        )
    comment = None if draft.has(*split, "probabilities") else "Ludwig's default"
    draft.account("pipeline.split", (*split, "type"))
    value = {"validation": validation, "test": test}
    draft.put("pipeline.split", value, (*split, "probabilities"), comment=comment)


# --- the sections of Ludwig --------------------------------------------------------------------------


def _copy_sections(draft: JobDraft) -> None:
    """Copies the sections that a job has too, with each of their keys mapped to itself."""
    for section in SECTIONS:
        values = draft.get(section)
        if values is None:
            continue
        if section == "adapter" and isinstance(values, str):
            values = {"type": values}
            draft.account("adapter.type", "adapter")
        if not isinstance(values, Mapping):
            draft.put(section, values, section)
            continue
        for key, value in values.items():
            if (section, key) not in (("preprocessing", "split"), ("trainer", "type")) and value is not None:
                draft.put(f"{section}.{key}", value, (section, key))
    if draft.config.get("backend") in ({"type": "local"}, "local"):
        del draft.config["backend"]


def _adapt_adapter(draft: JobDraft) -> None:
    several = draft.section("adapters", "adapters")
    if not draft.get("adapter") and several:
        first = next(iter(several))
        draft.put("adapter", dict(draft.section("adapters", "adapters", first)), ("adapters", "adapters", first))
        draft.change("adapters", f"alfine trains one adapter: {shorten(str(first))}")
    adapter = draft.config.get("adapter")
    if not isinstance(adapter, dict):
        return
    kind = adapter.setdefault("type", "lora")
    if kind == "adalora" or kind not in ludwig_fields()["adapter"]["variants"]:
        adapter["type"] = "lora"
        draft.change(("adapter", "type"), f"{shorten(str(kind))} is not supported; lora is written instead")
        for key in set(adapter) - set(ludwig_fields()["adapter"]["variants"]["lora"]):
            draft.remove(("adapter", key))
            draft.drop(f"it belongs to {shorten(str(kind))}", ("adapter", key))
    if adapter.get("target_modules") == "all-linear":
        adapter["target_modules"] = linear_modules(str(draft.config.get("base_model", "")))


def _adapt_trainer(draft: JobDraft) -> None:
    trainer = draft.config.setdefault("trainer", {})
    if not isinstance(trainer, dict):
        draft.refuse("expected a section of keys", "trainer")
    if draft.get("trainer", "type") != "finetune":
        draft.change(("trainer", "type"), "Ludwig would only evaluate; alfine fine-tunes")
        if not draft.has("trainer", "type"):
            draft.note("without trainer.type: finetune, Ludwig only evaluates; this job fine-tunes")
    else:
        draft.account("trainer.type", ("trainer", "type"))
        for key, value in TRAINER_DEFAULTS.items():
            has_steps = key == "epochs" and trainer.get("train_steps")
            if key not in trainer and not has_steps:
                draft.put(f"trainer.{key}", value, comment="Ludwig's default")
    if trainer.get("learning_rate") == "auto":
        draft.put("trainer.learning_rate", 0.0001, ("trainer", "learning_rate"))
        draft.change(("trainer", "learning_rate"), "alfine does not choose it; 0.0001 is written")
    _adapt_batch_size(draft, trainer)
    if isinstance(optimizer := trainer.get("optimizer"), dict):
        optimizer.setdefault("type", "adam")


def _adapt_batch_size(draft: JobDraft, trainer: dict[str, Any]) -> None:
    if isinstance(trainer.get("effective_batch_size"), int):
        trainer["batch_size"] = "auto"
        if draft.remove(("trainer", "gradient_accumulation_steps")):
            draft.drop("the size of micro-batches is measured", ("trainer", "gradient_accumulation_steps"))
    elif trainer.get("batch_size") == "auto":
        draft.remove(("trainer", "batch_size"))
        draft.change(("trainer", "batch_size"), "auto requires effective_batch_size; alfine's default of 8 rows")
    for key in ("effective_batch_size", "gradient_accumulation_steps"):
        if trainer.get(key) == "auto":
            draft.remove(("trainer", key))
            draft.drop("alfine computes it from the batch size", ("trainer", key))


def _adapt_generation(draft: JobDraft) -> None:
    generation = draft.config.get("generation")
    if isinstance(generation, dict) and "do_sample" not in generation and generation.get("temperature"):
        draft.put("generation.do_sample", True, comment="Ludwig's default")


def _drop_without_effect(draft: JobDraft) -> None:
    """Drops the keys that alfine refuses, with its own reasons. A wrong value of a supported key stays an error."""
    hints = KeyHints(ludwig_fields(), draft.config)
    for _ in range(MAX_ROUNDS):
        ludwig = {key: value for key, value in draft.config.items() if key != "pipeline"}
        faults = ludwig_faults(ludwig, draft.source, hints)
        if not faults:
            break
        message, path = faults[0]
        if not draft.remove(path):
            draft.refuse(message.removeprefix(f"{dotted(path)}: "), *path)
        draft.drop(_reason(message, path), path)
    for key in draft.source.value:
        if (refusal := unsupported(key)) and key not in ("input_features", "output_features", "prompt", "adapters"):
            draft.drop(refusal.reason.removesuffix("; remove it"), key)
    for section in [name for name in SECTIONS if draft.config.get(name) == {}]:
        del draft.config[section]


def _reason(message: str, path: KeyPath) -> str:
    """The reason in a message on a key, without the key's name and without "remove it"."""
    name = dotted(path)
    text = message.removeprefix(name).removeprefix(":").strip()
    for start in ("would have no effect: ", "is not supported: "):
        text = text.removeprefix(start)
    if text.startswith("unknown key"):
        return "Ludwig 0.17.10 has no such key"
    return text.removesuffix("; remove it")


IMPORTERS.register("ludwig", Importer(LUDWIG, convert))
