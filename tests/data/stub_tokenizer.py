"""A tokenizer for tests in milliseconds: neither transformers nor torch is imported."""

from __future__ import annotations


class CharacterTokenizer:
    """One token per character: its code point. 0 is EOS; there is no BOS and no chat template."""

    is_fast = False
    eos_token_id, bos_token_id, bos_token = 0, None, None
    all_special_ids, all_special_tokens = [0], ["<|eos|>"]

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def get_added_vocab(self) -> dict[str, int]:
        return {"<|eos|>": 0}
