"""The text and the bytes of single tokens, as OpenAI's API reports them with log probabilities."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """The texts of a tokenizer's tokens. A token may be a part of a character, so it has bytes first."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}

    @cached_property
    def _byte_of(self) -> dict[str, int] | None:
        """The bytes by the characters that stand for them in a byte-level vocabulary; None for other ones."""
        decoder = repr(getattr(getattr(self._tokenizer, "backend_tokenizer", None), "decoder", ""))
        if "ByteLevel" not in decoder:
            return None
        return {character: byte for byte, character in bytes_to_unicode().items()}

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token's text in UTF-8."""
        if token not in self._known:
            self._known[token] = self._compute(token)
        return self._known[token]

    def text(self, token: int) -> str:
        r"""The text of a token; bytes that are no whole characters are escaped, as in `\xf0\x9f`."""
        return self.token_bytes(token).decode("utf-8", errors="backslashreplace")

    def _compute(self, token: int) -> bytes:
        name = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return b""
        if token in self._tokenizer.added_tokens_decoder:
            return str(name).encode()
        if match := _BYTE.fullmatch(name):
            return bytes([int(match[1], 16)])
        if self._byte_of is not None and all(character in self._byte_of for character in name):
            return bytes(self._byte_of[character] for character in name)
        return str(name).replace("▁", " ").encode()
