"""The records of completions in a run folder."""

from __future__ import annotations

from typing import Any

from pipelines.data.examples import Example
from pipelines.evaluation.completions import Completion
from pipelines.storage.records import CompletionRecord, SamplePromptRecord


def completion_record(
    example: Example, completion: Completion, num_reference_tokens: int | None = None
) -> CompletionRecord:
    """The record in completions.jsonl of an example with a reference."""
    return CompletionRecord(
        task=example.task,
        row=example.row_number,
        prompt=example.prompt,
        reference=example.reference,
        reference_reasoning=example.reasoning or None,
        completion=completion.text,
        **_reasoning(completion),
        reference_nll=completion.reference_nll,
        num_reference_tokens=num_reference_tokens,
        num_generated_tokens=completion.num_generated_tokens,
        finish_reason=completion.finish_reason,
        fields=dict(example.fields),
    )


def sample_prompt_record(example: Example, completion: Completion) -> SamplePromptRecord:
    """The record in sample_prompts.jsonl of an example without a reference."""
    return SamplePromptRecord(
        title=example.title,
        prompt=example.prompt,
        completion=completion.text,
        **_reasoning(completion),
        num_generated_tokens=completion.num_generated_tokens,
        finish_reason=completion.finish_reason,
    )


def _reasoning(completion: Completion) -> dict[str, Any]:
    return {
        "reasoning": completion.reasoning,
        "reasoning_cut": completion.reasoning_cut,
        "num_reasoning_tokens": completion.num_reasoning_tokens,
    }
