"""General text: what stands for all that the base can do. Bundled passages, and instructions with the base's own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.console.activity import doing
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import DataError, Problem
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.evaluation.retention_files import read_text_column
from pipelines.modeling.packing import TokenSequences
from pipelines.storage.cache import cache_entry
from pipelines.storage.environment import versions
from pipelines.storage.files import digest, file_digest, read_jsonl, write_jsonl

ANSWER_TOKENS = 48
"""Longest answer of the base that is kept; it may be cut there."""
PASSAGE_TOKENS = 192


def encode_passages(prompts: PromptFormat, file: Path, rows: int | None = None) -> TokenSequences:
    """Plain texts (column `text`), of which every token but the first is predicted."""
    most = min(PASSAGE_TOKENS, prompts.context_length)
    found = [prompts.encode_text(text)[:most] for text in read_text_column(file, "text")[:rows]]
    return TokenSequences([np.asarray(ids) for ids in found], [1] * len(found))


def generate_general_answers(
    load: Callable[[], LoadedModel],
    prompts: PromptFormat,
    model_id: str,
    file: Path,
    system: str | None,
    rows: int | None = None,
) -> list[dict[str, Any]]:
    """The instructions of `file` with the base's own greedy answers: rows with prompt, completion, finish_reason.
    Answered once for a model, then taken from the cache; `load` is called where it is not there yet."""
    instructions = read_text_column(file, "instruction")[:rows]
    key = digest(
        model_id, file_digest(file), system, len(instructions), ANSWER_TOKENS, prompts.uses_chat_template, versions()
    )
    kept = cache_entry("general_answers", f"{key[:32]}.jsonl")
    if not kept.exists():
        ids = [prompts.encode_prompt(prompts.render_prompt(text, system)) for text in instructions]
        with doing("the base's own answers to general instructions", len(ids)) as activity:
            answers = complete(load(), ids, {"do_sample": False}, [ANSWER_TOKENS] * len(ids), activity.advance)
        write_jsonl(
            kept,
            [
                {"prompt": text, "completion": answer.text, "finish_reason": answer.finish_reason}
                for text, answer in zip(instructions, answers, strict=True)
            ],
        )
    return read_jsonl(kept)


def encode_answers(prompts: PromptFormat, answers: Sequence[dict[str, Any]], system: str | None) -> TokenSequences:
    """Prompt and answer as the model sees them, of which the answer is supervised; an answer that was cut has no end.
    Empty answers are left out."""
    ids, supervised_from = [], []
    for row in answers:
        if not row["completion"]:
            continue
        encoded = prompts.encode(prompts.render_prompt(row["prompt"], system), row["completion"])
        whole = encoded.input_ids if row.get("finish_reason") != "length" else encoded.input_ids[:-1]
        ids.append(np.asarray(whole[: prompts.context_length]))
        supervised_from.append(encoded.supervised_from)
    return TokenSequences(ids, supervised_from)


def load_replay_rows(prompts: PromptFormat, file: Path, system: str | None) -> TokenSequences:
    """Rows of a user's own file with `prompt` and `completion`. Raises DataError."""
    texts = list(zip(read_text_column(file, "prompt"), read_text_column(file, "completion"), strict=True))
    for number, (prompt, completion) in enumerate(texts, start=1):
        length = len(prompts.encode(prompts.render_prompt(prompt, system), completion).input_ids)
        if length > prompts.context_length:
            message = (
                f"has {length:,} tokens, this model's context holds {prompts.context_length:,}; shorten or drop the row"
            )
            raise DataError(Problem(message, str(file), number))
    return encode_answers(
        prompts, [{"prompt": prompt, "completion": completion} for prompt, completion in texts], system
    )
