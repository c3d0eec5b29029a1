"""General text, which stands for what the base model can do beyond the tasks.

It consists of bundled passages, and of bundled instructions with the base model's own answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console.activity import track_activity
from pipelines.data.conversation import Conversation
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import DataError, Problem
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.evaluation.data_files import read_text_column
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.registry import lazy_import
from pipelines.storage.cache import checked_cache_path
from pipelines.storage.environment import versions
from pipelines.storage.files import digest, file_sha256, read_jsonl, write_jsonl

if TYPE_CHECKING:
    import numpy as np
else:
    np = lazy_import("numpy")  # 0.2 s that loading a config does not need

MAX_ANSWER_TOKENS = 48
"""Limit on the base model's answers, which are cut there."""
MAX_PASSAGE_TOKENS = 192


def encode_passages(prompt_format: PromptFormat, file: Path, limit: int | None = None) -> TokenSequences:
    """The first `limit` plain texts of the column `text`, all tokens supervised but the first of each."""
    max_tokens = min(MAX_PASSAGE_TOKENS, prompt_format.context_length)
    texts = read_text_column(file, "text")[:limit]
    sequences = [np.asarray(prompt_format.encode_text(text)[:max_tokens]) for text in texts]
    return TokenSequences.supervised_from(sequences, [1] * len(sequences))


def generate_general_answers(
    load_model: Callable[[], LoadedModel],
    prompt_format: PromptFormat,
    model_fingerprint: str,
    file: Path,
    system: str | None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """The instructions of `file` with the base model's greedy answers, as {prompt, completion, finish_reason}.

    The answers are cached under `model_fingerprint`; `load_model` is called only if they are not in the cache.
    """
    instructions = read_text_column(file, "instruction")[:limit]
    key = digest(
        model_fingerprint,
        file_sha256(file),
        system,
        len(instructions),
        MAX_ANSWER_TOKENS,
        prompt_format.rendering_inputs,
        versions(),
    )
    cache_file = checked_cache_path("general_answers", f"{key[:32]}.jsonl")
    if not cache_file.exists():
        conversations = [Conversation.single_turn(text, system=system) for text in instructions]
        prompts = [encoded.prompt_ids for encoded in prompt_format.encode_conversations(conversations)]
        limits = [MAX_ANSWER_TOKENS] * len(prompts)
        with track_activity("the base's own answers to general instructions", len(prompts)) as activity:
            completions = complete(load_model(), prompts, {"do_sample": False}, limits, activity.advance)
        write_jsonl(
            cache_file,
            [
                {"prompt": text, "completion": completion.text, "finish_reason": completion.finish_reason}
                for text, completion in zip(instructions, completions, strict=True)
            ],
        )
    return read_jsonl(cache_file)


def encode_answers(
    prompt_format: PromptFormat, answers: Sequence[Mapping[str, Any]], system: str | None
) -> TokenSequences:
    """The `prompt` and `completion` of each row, with the completion supervised.

    A completion with `finish_reason` "length" has no end token. Rows with an empty completion are left out.
    """
    answered = [answer for answer in answers if answer["completion"]]
    conversations = [Conversation.single_turn(answer["prompt"], answer["completion"], system) for answer in answered]
    input_ids, completion_starts = [], []
    for answer, encoded in zip(answered, prompt_format.encode_conversations(conversations), strict=True):
        ids = encoded.input_ids if answer.get("finish_reason") != "length" else encoded.input_ids[:-1]
        input_ids.append(np.asarray(ids[: prompt_format.context_length]))
        completion_starts.append(len(encoded.prompt_ids))
    return TokenSequences.supervised_from(input_ids, completion_starts)


def load_replay_rows(prompt_format: PromptFormat, file: Path, system: str | None) -> TokenSequences:
    """Encodes a user's file of rows with `prompt` and `completion`.

    Raises DataError for a row that exceeds the context.
    """
    rows = [
        {"prompt": prompt, "completion": completion}
        for prompt, completion in zip(
            read_text_column(file, "prompt"), read_text_column(file, "completion"), strict=True
        )
    ]
    for row_index, row in enumerate(rows, start=1):
        conversation = Conversation.single_turn(row["prompt"], row["completion"], system)
        length = len(prompt_format.encode(conversation).input_ids)
        if length > prompt_format.context_length:
            message = (
                f"has {length:,} tokens; the model's context is {prompt_format.context_length:,}; "
                "shorten or drop the row"
            )
            raise DataError(Problem(message, str(file), row_index))
    return encode_answers(prompt_format, rows, system)
