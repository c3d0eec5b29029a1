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
from pipelines.data.reasoning import split_inline_thought
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
ANSWERS_FORMAT = 2
"""Version of the cached answers."""


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
    """The instructions of `file` with the base model's greedy answers, as {prompt, completion, tokens}.

    `tokens` are exactly what the model generated, a thought before the answer included: what a model does on its own
    is what training must not change. `completion` is their text, for readers.

    The answers are cached under `model_fingerprint`; `load_model` is called only if they are not in the cache.
    """
    instructions = read_text_column(file, "instruction")[:limit]
    key = digest(
        model_fingerprint,
        file_sha256(file),
        system,
        len(instructions),
        ANSWERS_FORMAT,
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
                {"prompt": text, "completion": completion.text, "tokens": completion.tokens}
                for text, completion in zip(instructions, completions, strict=True)
            ],
        )
    return read_jsonl(cache_file)


def encode_answers(
    prompt_format: PromptFormat, answers: Sequence[Mapping[str, Any]], system: str | None
) -> TokenSequences:
    """The `prompt` of each row with the `tokens` of its answer, which are supervised. Rows with an empty answer
    are left out."""
    answered = [answer for answer in answers if set(answer["tokens"]) - set(prompt_format.stop_ids)]
    conversations = [Conversation.single_turn(answer["prompt"], system=system) for answer in answered]
    prompts = [encoded.prompt_ids for encoded in prompt_format.encode_conversations(conversations)]
    sequences = [[*prompt, *answer["tokens"]] for prompt, answer in zip(prompts, answered, strict=True)]
    return _within_context(prompt_format, sequences, list(map(len, prompts)))


def _within_context(
    prompt_format: PromptFormat, sequences: Sequence[list[int]], prompt_lengths: list[int]
) -> TokenSequences:
    cut = [np.asarray(ids[: prompt_format.context_length]) for ids in sequences]
    return TokenSequences.supervised_from(cut, prompt_lengths)


def load_replay_rows(prompt_format: PromptFormat, file: Path, system: str | None) -> TokenSequences:
    """Encodes a user's file of rows with `prompt` and `completion`. A thought at the start of a completion is written
    with the model's own markers.

    Raises DataError for a row that exceeds the context, or whose thought does not end.
    """
    prompts, completions = (read_text_column(file, column) for column in ("prompt", "completion"))
    encoded = []
    for row_number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), start=1):
        try:
            thought, answer = _thought_and_answer(prompt_format, completion)
        except ValueError as error:
            problem = f"the completion {error}; close it, or drop the row"
            raise DataError(Problem(problem, str(file), row_number)) from None
        example = prompt_format.encode(Conversation.single_turn(prompt, answer, system, thought))
        length = len(example.input_ids)
        if length > prompt_format.context_length:
            message = (
                f"has {length:,} tokens; the model's context is {prompt_format.context_length:,}; "
                "shorten or drop the row"
            )
            raise DataError(Problem(message, str(file), row_number))
        encoded.append(example)
    return _within_context(prompt_format, [row.input_ids for row in encoded], [len(row.prompt_ids) for row in encoded])


def _thought_and_answer(prompt_format: PromptFormat, completion: str) -> tuple[str | None, str]:
    """The thought at the start of a completion, None if it has none or the model has no markers, and the answer."""
    markers = prompt_format.reasoning_markers
    split = split_inline_thought(completion, markers) if markers and markers.is_trainable else None
    return split or (None, completion)
