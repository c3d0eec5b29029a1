"""The lengths of rows in tokens: counted with the tokenizer of the base model if its files are here, else estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.checks.chat_template import TemplateRenderer
from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.row_formats import FilledRow
from pipelines.errors import ConfigError
from pipelines.modeling.base_models import context_length, local_folder
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import tokenizers
else:
    tokenizers = lazy_import("tokenizers")  # 0.1 s that other commands do not need

MAX_COUNTED = 1000
"""Rows whose tokens are counted: the longest ones."""
BYTES_PER_TOKEN = 3.0
"""Estimate without a tokenizer. English has about 4 bytes per token, so that limits are rather too large."""
TURN_TOKENS = 12
"""Estimate of what a chat template writes around a turn."""


@dataclass(frozen=True)
class Lengths:
    """The lengths of rows in tokens.

    totals, completions: of the longest rows, in ascending order.
    source: how they were found, for comments.
    context: the most tokens that the model can attend to; None if its files are not here.
    num_rows: the number of rows; those that are not among `totals` are shorter.
    """

    totals: list[int]
    completions: list[int]
    source: str
    context: int | None
    num_rows: int


def measure(rows: Sequence[FilledRow], base_model: str) -> Lengths:
    """The lengths of filled rows."""
    folder = local_folder(base_model)
    context = None if folder is None else context_length(folder)
    longest = sorted(rows, key=lambda row: -len(row.prompt) - len(row.completion or ""))[:MAX_COUNTED]
    answers = sorted(rows, key=lambda row: -len(row.completion or ""))[:MAX_COUNTED]
    if folder is not None and (tokenizer := _load(folder)) is not None:
        count = _Counter(tokenizer, folder)
        source = f"counted with the tokenizer of {base_model}"
        totals, completions = map(count.total, longest), map(count.completion, answers)
    else:
        source = f"estimated as {BYTES_PER_TOKEN:g} bytes per token: no tokenizer of {base_model} on this machine"
        totals, completions = map(_estimated_total, longest), map(_estimated_completion, answers)
    return Lengths(sorted(totals), sorted(completions), source, context, len(rows))


def _load(folder: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer in a folder; None without one that the library `tokenizers` can read."""
    try:
        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # the library raises no narrower class
        return None


class _Counter:
    """Counts the tokens of rows as the chat template of a model renders them."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
        self.tokenizer = tokenizer
        try:
            self.prompt_format: PromptFormat | None = PromptFormat(TemplateRenderer(folder))
        except ConfigError:
            self.prompt_format = None

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def total(self, row: FilledRow) -> int:
        conversation = row.turns or Conversation.single_turn(row.prompt, row.completion, row.system)
        if self.prompt_format is not None:
            try:
                return self._tokens(self.prompt_format.render(conversation).text)
            except ChatTemplateError:
                pass  # `alfine check` reports it
        return self._tokens(row.prompt) + self._tokens(row.completion or "") + TURN_TOKENS

    def completion(self, row: FilledRow) -> int:
        return self._tokens(row.completion or "") + 2  # the end of the turn


def _estimated_total(row: FilledRow) -> int:
    if row.turns is None:
        return _estimate(row.prompt) + _estimated_completion(row) + TURN_TOKENS
    return sum(_estimate(str(message["content"])) + TURN_TOKENS for message in row.turns.messages)


def _estimated_completion(row: FilledRow) -> int:
    return _estimate(row.completion or "") + 2


def _estimate(text: str) -> int:
    return round(len(text.encode()) / BYTES_PER_TOKEN) + 1
