"""The check of an export: it is loaded by the program that its users run, and asked the test prompts of its run.

An export in fp32 of a run in fp32 must give the run's answers token by token. In another precision equal answers are
counted, and the scores of the tasks must not be significantly worse, see `agreement`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console.reporter import ConsoleReporter
from pipelines.data.conversation import Conversation, Message
from pipelines.evaluation.completions import complete, decode_completion
from pipelines.evaluation.engine_process import EngineProcess
from pipelines.exporting.agreement import MARGIN, Answer, is_same_answer, measure_agreement
from pipelines.exporting.chat_template import ExportTemplate
from pipelines.exporting.process import start_engine
from pipelines.exporting.records import ExportCheck
from pipelines.exporting.source import EvaluatedPrompt, ExportSource
from pipelines.prediction.models import load_tuned
from pipelines.registry import lazy_import
from pipelines.scoring.metric import metric_from_key, metric_key
from pipelines.scoring.sandbox import prepare_sandbox
from pipelines.storage.records import CompletionRecord

if TYPE_CHECKING:
    from pipelines.modeling import quantization
else:
    # torch: 3 s that an error in the arguments does not need
    quantization = lazy_import("pipelines.modeling.quantization")

SAMPLED = "the answers of the run's model, by greedy decoding, since the run samples its own"
STORED = "the completions in the run's report"


@dataclass(frozen=True)
class Engine:
    """How an export is loaded.

    Attributes:
        program: the file in `engines/`.
        arguments: those of the engine's constructor, as JSON values.
        is_fp32: whether it computes the export in fp32.
        follows_settings: whether it takes every generation setting of the run; otherwise it decodes greedily.
    """

    program: str
    arguments: Mapping[str, Any]
    is_fp32: bool
    follows_settings: bool = True


def transformers_engine(source: ExportSource, folder: Path, dtype: str | None) -> Engine:
    """transformers, with PEFT for an adapter (`dtype` None), which is put on the model that training started from."""
    base, settings, base_dtype = None, None, None
    if dtype is None:
        base = str(source.starting_model.resolve())
        base_dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(source.manifest.hardware.dtype, "float32")
        if source.job.quantization is not None:
            settings = _plain(quantization.bitsandbytes_config(source.job.quantization).to_dict())
    arguments = {"folder": str(folder.resolve()), "base": base, "dtype": base_dtype, "quantization": settings}
    return Engine("transformers_engine.py", arguments, (dtype or base_dtype) == "float32" and settings is None)


def llama_cpp_engine(file: Path, prompts: Sequence[EvaluatedPrompt], quantization: str) -> Engine:
    """llama.cpp, whose keys and values are in fp32 if the file is, else in its default fp16."""
    longest = max(len(prompt.ids) + max(prompt.limit, len(prompt.reference_ids)) for prompt in prompts)
    is_fp32 = quantization == "f32"
    arguments = {"file": str(file.resolve()), "longest": longest, "fp32_cache": is_fp32}
    return Engine("llama_cpp_engine.py", arguments, is_fp32, follows_settings=False)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of BitsAndBytesConfig that are JSON values."""
    names = ["load_in_4bit", "load_in_8bit", "llm_int8_threshold", "llm_int8_has_fp16_weight", "bnb_4bit_compute_dtype"]
    names += ["bnb_4bit_use_double_quant", "bnb_4bit_quant_type"]
    return {name: settings[name] for name in names}


def check_export(
    source: ExportSource,
    engine: Engine,
    template: ExportTemplate,
    prompts: Sequence[EvaluatedPrompt],
    reporter: ConsoleReporter,
) -> ExportCheck:
    """Asks the export the prompts, at least one. Raises RunError if the engine cannot load it, or fails."""
    started = time.monotonic()
    metrics = {
        name: metric_from_key(metric_key(task.metric, task.normalize))
        for name, task in source.job.pipeline.tasks.items()
    }
    prepare_sandbox({task.metric for task in source.job.pipeline.tasks.values()}, reporter.status)
    is_greedy = not engine.follows_settings and not _is_greedy(source.job.generation)
    is_greedy = is_greedy or bool(source.job.generation.get("do_sample"))
    if is_greedy:
        prompts = _greedy_answers(source, prompts, reporter)
    hardware = source.manifest.hardware
    must_be_equal = (
        engine.is_fp32 and hardware.dtype == "fp32" and hardware.device == "cpu" and source.job.quantization is None
    )
    with reporter.status("Loading the export"):
        process = start_engine(engine.program, engine.arguments)
    with process:
        encoded = process.call("encode", prompts=[_plain_prompt(source, template, prompt) for prompt in prompts])
        answers = _ask(source, process, prompts, is_greedy, reporter)
        description = process.description
    unequal = [
        f"task {prompt.task}, row {prompt.row}: {_difference(prompt.ids, ids)}"
        for prompt, ids in zip(prompts, encoded, strict=True)
        if list(prompt.ids) != ids
    ]
    columns = {name: task.cluster_by for name, task in source.job.pipeline.tasks.items()}
    agreement = measure_agreement(answers, metrics, columns, must_be_equal)
    problems = [*_file_problems(source, template, prompts, description), *agreement.problems]
    if unequal:
        problems.append(
            f"{len(unequal)} of {len(prompts)} prompts are tokenized otherwise than in the run: {unequal[0]}"
        )
    return ExportCheck(
        engine=description["name"],
        engine_versions=description["versions"],
        device=description["device"],
        must_be_equal=must_be_equal,
        reference=SAMPLED if is_greedy else STORED,
        rows=len(prompts),
        equal_prompts=len(prompts) - len(unequal),
        unequal_prompts=unequal[:3],
        equal_answers=agreement.equal_answers,
        ties=agreement.ties,
        first_difference_median=agreement.first_difference_median,
        token_agreement=round(agreement.token_agreement, 2),
        tasks=agreement.tasks,
        margin=MARGIN,
        passed=not problems,
        problems=problems,
        seconds=round(time.monotonic() - started, 1),
    )


def _file_problems(
    source: ExportSource,
    template: ExportTemplate,
    prompts: Sequence[EvaluatedPrompt],
    description: Mapping[str, Any],
) -> list[str]:
    """What the engine has read from the export otherwise than it was trained, as sentences."""
    problems = []
    sources, found = template.sources, description["chat_template"]
    expected = sources.get("default") if isinstance(sources, Mapping) else sources
    if isinstance(found, Mapping):
        found = found.get("default")
    if (found or "").strip() != (expected or "").strip():
        problems.append("the export has another chat template than the one that was trained")
    missing = sorted(set(source.prompt_format.stop_ids) - set(description["end_tokens"]))
    if missing:
        texts = ", ".join(source.prompt_format.tokenizer.convert_ids_to_tokens(missing))
        problems.append(f"the export does not end an answer at {texts}")
    bos = source.prompt_format.tokenizer.bos_token_id
    if description.get("adds_bos") and not all(list(prompt.ids[:1]) == [bos] for prompt in prompts):
        problems.append("the export begins prompts with a token that those of the run do not have")
    return problems


def _is_greedy(generation: Mapping[str, Any]) -> bool:
    """Whether the settings are those of greedy decoding."""
    neutral = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "max_new_tokens": None}
    return all(
        value is None or key == "max_new_tokens" or value == neutral.get(key, object())
        for key, value in generation.items()
    )


def _plain_prompt(source: ExportSource, template: ExportTemplate, prompt: EvaluatedPrompt) -> dict[str, Any]:
    """The arguments of a user's call of `apply_chat_template`, or the text for a model without a template."""
    if template.sources is None:
        return {"text": prompt.text}
    variables = template.task_variables.get(prompt.task, {})
    return {"messages": list(prompt.messages), "tools": prompt.tools, "variables": variables}


def _difference(expected: Sequence[int], actual: Sequence[int] | str) -> str:
    if isinstance(actual, str):
        return actual
    index = next(
        (index for index, (one, other) in enumerate(zip(expected, actual, strict=False)) if one != other),
        min(len(expected), len(actual)),
    )
    return f"{len(actual)} tokens instead of {len(expected)}, the first difference at token {index + 1}"


def _greedy_answers(
    source: ExportSource, prompts: Sequence[EvaluatedPrompt], reporter: ConsoleReporter
) -> list[EvaluatedPrompt]:
    """The prompts with the greedy answers of the run's own model."""
    with reporter.status("Loading the tuned model"):
        loaded = load_tuned(source.run, source.job)
    with reporter.progress("Answers of the tuned model", len(prompts), "rows") as progress:
        ids, limits = [list(prompt.ids) for prompt in prompts], [prompt.limit for prompt in prompts]
        completions = complete(loaded, ids, {"do_sample": False}, limits, progress)
    if loaded.vllm is not None:
        loaded.vllm.close()  # the export needs the memory
    return [
        replace(prompt, answer=_answer_record(source, prompt, list(completion.tokens)))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _answer_record(source: ExportSource, prompt: EvaluatedPrompt, tokens: Sequence[int]) -> CompletionRecord:
    """The record of the prompt with the answer that `tokens` are."""
    split, finish_reason = decode_completion(source.prompt_format, prompt.ids, tokens)
    update = {
        "completion": split.answer,
        "reasoning": split.reasoning,
        "reasoning_cut": split.is_unfinished and finish_reason == "length",
        "num_reasoning_tokens": split.num_reasoning_tokens,
        "num_generated_tokens": len(tokens),
        "finish_reason": finish_reason,
    }
    return CompletionRecord.model_validate({**prompt.answer.model_dump(), **update})


def _ask(
    source: ExportSource,
    process: EngineProcess,
    prompts: Sequence[EvaluatedPrompt],
    is_greedy: bool,
    reporter: ConsoleReporter,
) -> list[Answer]:
    ids, limits = [list(prompt.ids) for prompt in prompts], [prompt.limit for prompt in prompts]
    with reporter.progress(f"Answers of the export by {process.description['name']}", len(prompts), "rows") as progress:
        generated = process.call("complete", progress, prompts=ids, limits=limits, greedy=is_greedy)
    records = [_answer_record(source, prompt, tokens) for prompt, tokens in zip(prompts, generated, strict=True)]
    different = [
        index
        for index, (prompt, record) in enumerate(zip(prompts, records, strict=True))
        if not is_same_answer(prompt.answer, record)
    ]
    # The export has chosen every token of an equal answer.
    run_tokens = {index: _stored_tokens(source, prompts[index]) for index in different}
    scores: dict[int, dict[str, list[Any]]] = dict.fromkeys(range(len(prompts)), {"own": [], "best": []})
    if different:
        sequences = [{"prompt": ids[index], "answer": run_tokens[index]} for index in different]
        with reporter.progress("Probabilities of other answers of the run", len(different), "rows") as progress:
            scores |= zip(different, process.call("score", progress, sequences=sequences), strict=True)
    nlls = _reference_nlls(source, process, prompts)
    return [
        Answer(
            run=prompt.answer,
            export=record.model_copy(update={"reference_nll": nlls[index]}),
            run_tokens=run_tokens.get(index, tokens),
            export_tokens=tokens,
            own=scores[index]["own"],
            best=scores[index]["best"],
            choices=scores[index].get("tokens", tokens),
        )
        for index, (prompt, record, tokens) in enumerate(zip(prompts, records, generated, strict=True))
    ]


def _reference_nlls(
    source: ExportSource, process: EngineProcess, prompts: Sequence[EvaluatedPrompt]
) -> list[float | None]:
    """The export's mean loss of the reference of each prompt whose task is scored by it; None for other tasks."""
    tasks = {
        name for name, task in source.job.pipeline.tasks.items() if not metric_from_key(task.metric).scores_completions
    }
    indices = [index for index, prompt in enumerate(prompts) if prompt.task in tasks and prompt.reference_ids]
    nlls: list[float | None] = [None] * len(prompts)
    if indices:
        sequences = [{"prompt": list(prompts[i].ids), "answer": list(prompts[i].reference_ids)} for i in indices]
        for index, score in zip(indices, process.call("score", sequences=sequences), strict=True):
            nlls[index] = -sum(score["own"]) / len(score["own"])
    return nlls


def _stored_tokens(source: ExportSource, prompt: EvaluatedPrompt) -> list[int]:
    """The tokens of the run's answer. The run stores its text, which is tokenized as answers are in training."""
    answer = prompt.answer
    message: Message = {"role": "assistant", "content": answer.completion}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    conversation = Conversation(
        [*prompt.messages, message],
        supervised_turns=(len(prompt.messages),),
        tools=prompt.tools,
        template_kwargs=prompt.variables,
        with_reasoning=bool(answer.reasoning),
    )
    tokens = source.prompt_format.encode(conversation).completion_ids
    return tokens[: max(1, answer.num_generated_tokens)]
