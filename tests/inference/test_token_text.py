"""Texts and bytes of single tokens."""

import pytest

from pipelines.inference.token_text import TokenTexts
from tests.tiny_tokenizers import make_tokenizer


@pytest.mark.parametrize("kind", ["pad_is_eos", "sentencepiece", "qwen3_like"])
def test_the_bytes_of_tokens_are_those_of_the_text(kind):
    tokenizer = make_tokenizer(kind)
    texts = TokenTexts(tokenizer)
    text = "the tea in a net" if kind == "sentencepiece" else "the tea 日本 🙂\n"
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    joined = b"".join(texts.token_bytes(token) for token in tokens).decode()
    assert joined == (f" {text}" if kind == "sentencepiece" else text)


def test_bytes_that_are_no_character_are_escaped():
    tokenizer = make_tokenizer("pad_is_eos")
    first = tokenizer("🙂")["input_ids"][0]
    assert (TokenTexts(tokenizer).text(first), TokenTexts(tokenizer).token_bytes(first)) == ("\\xf0", b"\xf0")


def test_special_and_unknown_tokens():
    tokenizer = make_tokenizer("pad_is_eos")
    assert TokenTexts(tokenizer).text(tokenizer.eos_token_id) == "<|im_end|>"
    assert TokenTexts(tokenizer).text(10**6) == ""
