"""Checks the section `pipeline:`, by itself and against the Ludwig part of the config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.config.data_files import DataFiles
from pipelines.config.forgetting import job_traits, resolve_auto, strategy_conflicts
from pipelines.config.generation import is_greedy
from pipelines.config.key_hints import KeyHints
from pipelines.config.messages import did_you_mean
from pipelines.config.pipeline import PipelineSettings, Split
from pipelines.config.pydantic_errors import error_path, to_problem
from pipelines.config.strategy_registry import JobTraits
from pipelines.config.yaml_source import Document
from pipelines.errors import Problem


def parse_pipeline(
    document: Document, ludwig: Mapping[str, Any], hints: KeyHints
) -> tuple[PipelineSettings | None, list[Problem]]:
    """The validated section, or None if it is invalid, and its problems. `ludwig` is the rest of the config."""
    section = document.value.get("pipeline", {})
    expanded = _expand_auto(section, ludwig)
    problems: list[Problem] = []
    pipeline = None
    try:
        context = {"refused": set(strategy_conflicts(job_traits(expanded, ludwig)))}
        pipeline = PipelineSettings.model_validate(expanded, context=context)
    except ValidationError as error:
        problems += [
            to_problem(details, document, hints)
            for details in error.errors(include_url=False)
            if error_path(details) not in document.invalid_paths
        ]
    if isinstance(section, dict) and "temperature" in section and section.get("mix") != "temperature":
        message = "pipeline.temperature has no effect unless mix is temperature"
        problems.append(document.problem(message, "pipeline", "temperature"))
    if pipeline is not None:
        problems += _gate_problems(pipeline, document)
        problems += _conflicts(pipeline, expanded, ludwig, document)
    return pipeline, problems


def _expand_auto(section: Any, ludwig: Mapping[str, Any]) -> Any:
    """The section with the word `auto` in its strategy replaced by the strategy that it selects for this job."""
    if not isinstance(section, dict):
        return section
    forgetting = section.get("forgetting", {})
    forgetting = {"strategy": forgetting} if isinstance(forgetting, str) else forgetting
    strategy = forgetting.get("strategy", "auto") if isinstance(forgetting, dict) else None
    if not isinstance(strategy, str):
        return section
    auto = resolve_auto(adapter=ludwig.get("adapter") is not None, continued=section.get("continue_from") is not None)
    return {**section, "forgetting": {**forgetting, "strategy": re.sub(r"\bauto\b", auto, strategy)}}


def _gate_problems(pipeline: PipelineSettings, document: Document) -> Iterator[Problem]:
    """Gates on tasks or retention evals that do not exist. Those of an earlier run, RUN/TASK, are checked later."""
    for name, gate in pipeline.report.gates.items():
        if gate.max_drop is None:
            kind, known = "task", list(pipeline.tasks)
        else:
            kind, known = "retention eval", pipeline.forgetting.eval_names
        if gate.max_drop is not None and pipeline.continue_from is not None and "/" in name:
            continue
        if gate.min_gain_beyond_few_shot is not None and name in known and not pipeline.few_shot(pipeline.tasks[name]):
            message = (
                f"pipeline.report.gates.{name}: min_gain_beyond_few_shot needs examples in the prompt, but few_shot is "
                "0; write few_shot: 4"
            )
            yield document.problem(message, "pipeline", "report", "gates", name, "min_gain_beyond_few_shot")
        if name not in known:
            closest = did_you_mean(name, known)
            hint = f"did you mean {closest}?" if closest else f"the {kind}s are {', '.join(known) or 'none'}"
            message = f"pipeline.report.gates.{name}: there is no such {kind}; {hint}"
            yield document.problem(message, "pipeline", "report", "gates", name)


def _conflicts(
    pipeline: PipelineSettings, expanded: Any, ludwig: Mapping[str, Any], document: Document
) -> Iterator[Problem]:
    """Keys that contradict the rest of the job, or have no effect in it."""
    forgetting = pipeline.forgetting
    traits = job_traits(expanded, ludwig)
    conflicts = strategy_conflicts(traits)
    for name in forgetting.strategies:
        if name in conflicts:
            message = f"pipeline.forgetting.strategy: {conflicts[name]}"
            yield document.problem(message, "pipeline", "forgetting", "strategy")
    if pipeline.split != Split() and all(_names_every_split(task.data) for task in pipeline.tasks.values()):
        message = "pipeline.split has no effect if every task names files for each split; remove it"
        yield document.problem(message, "pipeline", "split")
    if pipeline.hardware.inference_engine == "vllm" and (reason := vllm_conflict(ludwig)):
        message = f"pipeline.hardware.inference_engine: vllm {reason}"
        yield document.problem(message, "pipeline", "hardware", "inference_engine")
    if pipeline.hardware.offload_optimizer and (reason := _offload_conflict(traits, ludwig)):
        message = f"pipeline.hardware.offload_optimizer {reason}"
        yield document.problem(message, "pipeline", "hardware", "offload_optimizer")
    for strategy, key, reason in forgetting.unused_settings(traits):
        message = f"pipeline.forgetting: {strategy}.{key} has no effect {reason}"
        yield document.problem(message, "pipeline", "forgetting", strategy, key)


def vllm_conflict(ludwig: Mapping[str, Any]) -> str | None:
    """Why vLLM cannot generate the completions of a job, with what to write instead; None if it may."""
    adapter, quantization = ludwig.get("adapter"), ludwig.get("quantization")
    if quantization is not None:
        return "does not serve bases that are quantized at load; write auto, or remove quantization"
    if isinstance(adapter, Mapping) and adapter.get("type") != "lora":
        return f"does not serve adapters of type {adapter.get('type')}; write auto, or adapter: {{type: lora}}"
    if isinstance(adapter, Mapping) and adapter.get("use_dora"):
        return "does not serve DoRA adapters; write auto, or use_dora: false"
    for key, default in _NEUTRAL_LORA_KEYS.items():
        if isinstance(adapter, Mapping) and (adapter.get(key) or default) != default:
            return f"does not serve adapters with {key}; write auto, or remove it"
    generation = ludwig.get("generation")
    if isinstance(generation, Mapping) and not is_greedy(generation):
        return "generates greedy completions only, without beams and penalties; write auto, or remove such settings"
    return None


_NEUTRAL_LORA_KEYS: Mapping[str, Any] = {"bias_type": "none", "rank_pattern": {}, "alpha_pattern": {}}
"""Keys of a LoRA adapter that vLLM does not know, with the values that have no effect."""


def _names_every_split(data: Any) -> bool:
    return isinstance(data, DataFiles) and data.validation is not None and data.test is not None


def _offload_conflict(traits: JobTraits, ludwig: Mapping[str, Any]) -> str | None:
    """Why the optimizer cannot be in main memory in this job; None if it can."""
    if traits.adapter is not None:
        return "is for a training without an adapter, which has few trained weights; remove it"
    if penalties := sorted({"ewc", "si", "l2sp"} & set(traits.strategies)):
        return f"cannot be combined with {penalties[0]}, which acts on the weights of the GPU; use replay+distill"
    backend = ludwig.get("backend")
    if backend == "ray" or (isinstance(backend, dict) and backend.get("type") == "ray"):
        return "works in one process; remove the section backend"
    return None
