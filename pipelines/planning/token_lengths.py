"""The lengths of examples in tokens, counted with the model's tokenizer file and without transformers (3 s)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.checks.chat_template import renderer
from pipelines.config.job import Job
from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation
from pipelines.errors import ModelError
from pipelines.registry import lazy_import

if TYPE_CHECKING:
    import tokenizers
else:
    tokenizers = lazy_import("tokenizers")

CHARACTERS_PER_TOKEN = 4
"""Where the model has no tokenizer file that can be read here: about that of English text; code has fewer."""


@dataclass(frozen=True)
class ExampleTokens:
    """The tokens of an example: all of them, and how many are its prompt and are supervised.

    `ids` are token ids if the tokenizer is known, otherwise parts of the text of about the size of a token.
    """

    ids: Sequence[int]
    prompt: int
    supervised: int


class TokenCounter:
    """Counts tokens of rendered conversations. Raises ConfigError for a chat template that cannot be used."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.prompt_format = renderer(job, folder)
        file = folder / "tokenizer.json"
        self.tokenizer: tokenizers.Tokenizer | None = None
        if file.is_file():
            try:
                self.tokenizer = tokenizers.Tokenizer.from_file(str(file))
            except Exception as error:  # the library raises bare exceptions for files that it cannot read
                raise ModelError(f"{file} cannot be read ({str(error).splitlines()[0][:120]})") from None
            self.tokenizer.no_padding()
            self.tokenizer.no_truncation()

    @property
    def is_exact(self) -> bool:
        """Whether tokens are the model's; otherwise they are estimated from characters."""
        return self.tokenizer is not None

    def count(self, conversations: Sequence[Conversation]) -> list[ExampleTokens]:
        """The tokens of each conversation; one that the chat template refuses is left out."""
        texts: list[str] = []
        for conversation in conversations:
            try:
                rendered = self.prompt_format.render(conversation)
            except ChatTemplateError:
                continue  # `check` reports it, with its row
            cut = rendered.spans[-1][0] if rendered.spans else len(rendered.text)
            supervised = "".join(rendered.text[start:end] for start, end in rendered.spans)
            texts += [rendered.text, rendered.text[:cut], supervised]
        ids = self._tokenize(texts)
        return [
            ExampleTokens(whole, len(prompt), len(supervised))
            for whole, prompt, supervised in zip(ids[::3], ids[1::3], ids[2::3], strict=True)
        ]

    def _tokenize(self, texts: list[str]) -> list[Sequence[int]]:
        if self.tokenizer is not None:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        return [_pseudo_tokens(text) for text in texts]


def _pseudo_tokens(text: str) -> list[int]:
    """Parts of the text in place of tokens. Equal prefixes have equal parts, so that sharing can be estimated."""
    return [
        zlib.crc32(text[start : start + CHARACTERS_PER_TOKEN].encode()) >> 1
        for start in range(0, len(text), CHARACTERS_PER_TOKEN)
    ]
