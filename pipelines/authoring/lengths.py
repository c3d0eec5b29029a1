"""The lengths of rows in tokens: counted with the tokenizer of the base model if its files are here, else estimated."""

from __future__ import annotations

import contextlib
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
END_TOKENS, MARKER_TOKENS = 2, 8
"""Estimates of the end of a turn, and of the markers around a thought."""


@dataclass(frozen=True)
class Lengths:
    """The lengths of rows in tokens.

    totals, completions, thoughts: of the longest rows, their answers and their thoughts, in ascending order.
    source: how they were found, for comments.
    context: the most tokens that the model can attend to; None if its files are not here.
    num_rows: the number of rows; those that are not among `totals` are shorter.
    """

    totals: list[int]
    completions: list[int]
    thoughts: list[int]
    source: str
    context: int | None
    num_rows: int


@dataclass(frozen=True)
class Texts:
    """A filled row and the thought before its completion, if one is trained."""

    row: FilledRow
    thought: str | None = None

    @property
    def size(self) -> int:
        return len(self.row.prompt) + len(self.row.completion or "") + len(self.thought or "")


def measure(rows: Sequence[Texts], base_model: str) -> Lengths:
    """The lengths of filled rows."""
    folder = local_folder(base_model)
    context = None if folder is None else context_length(folder)
    tokenizer = None if folder is None else _load(folder)
    count = _Counter(tokenizer, folder)
    if tokenizer is not None:
        source = f"counted with the tokenizer of {base_model}"
    else:
        source = f"estimated as {BYTES_PER_TOKEN:g} bytes per token: no tokenizer of {base_model} on this machine"
    longest = sorted(rows, key=lambda texts: -texts.size)[:MAX_COUNTED]
    answers = sorted((texts.row.completion or "" for texts in rows), key=len)[-MAX_COUNTED:]
    thoughts = sorted((texts.thought for texts in rows if texts.thought), key=len)[-MAX_COUNTED:]
    return Lengths(
        sorted(map(count.total, longest)),
        sorted(count.tokens(text) + END_TOKENS for text in answers),
        sorted(count.tokens(text) + MARKER_TOKENS for text in thoughts),
        source,
        context,
        len(rows),
    )


def is_reasoning_model(base_model: str) -> bool:
    """Whether a base model has markers for thoughts, as far as its files are on this machine."""
    folder = local_folder(base_model)
    if folder is None:
        return False
    try:
        markers = PromptFormat(TemplateRenderer(folder)).reasoning_markers
    except ConfigError:
        return False
    return markers is not None and markers.is_trainable


def _load(folder: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer in a folder; None without one that the library `tokenizers` can read."""
    try:
        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # the library raises no narrower class
        return None


class _Counter:
    """Counts the tokens of rows as the chat template of a model renders them; without a tokenizer it estimates them."""

    def __init__(self, tokenizer: tokenizers.Tokenizer | None, folder: Path | None) -> None:
        self.tokenizer = tokenizer
        self.prompt_format: PromptFormat | None = None
        if tokenizer is not None and folder is not None:
            with contextlib.suppress(ConfigError):
                self.prompt_format = PromptFormat(TemplateRenderer(folder))

    def tokens(self, text: str) -> int:
        if self.tokenizer is None:
            return round(len(text.encode()) / BYTES_PER_TOKEN) + 1
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def total(self, texts: Texts) -> int:
        """The tokens of a whole row."""
        row = texts.row
        conversation = row.turns or Conversation.single_turn(row.prompt, row.completion, row.system, texts.thought)
        if self.prompt_format is not None:
            with contextlib.suppress(ChatTemplateError):  # `alfine check` reports it
                return self.tokens(self.prompt_format.render(conversation).text)
        contents = [
            str(message.get(key) or "") for message in conversation.messages for key in ("content", "reasoning_content")
        ]
        return sum(map(self.tokens, filter(None, contents))) + TURN_TOKENS * len(conversation.messages)
