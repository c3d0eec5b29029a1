"""Tiny tokenizers of the kinds that break fine-tuning tools, built without torch."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3_LIKE = """{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- set thought = m.reasoning_content or '' -%}
{%- set content = m.content -%}
{%- if m.role == 'assistant' and '</think>' in content -%}
  {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
  {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if m.role == 'assistant' and loop.last -%}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}
{{- content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}"""
"""A hybrid model: the last answer has its thought, which may be empty; `enable_thinking: false` switches it off."""
R1_LIKE = """{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{{- m.content.split('</think>')[-1] if m.role == 'assistant' else m.content -}}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"""
"""A model that always thinks: every prompt opens a thought, and thoughts of earlier answers are left out."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>", "<pad>"]


def byte_level(special: list[str] = SPECIAL) -> Tokenizer:
    """A byte-level BPE tokenizer in the style of GPT-2: every byte is a token, with a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("n", "e"), ("g", "a")]
    vocabulary = [*special, *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    """A tokenizer in the style of Llama 2: ▁ for spaces and before the first word, characters as tokens, and a BOS."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["<unk>", "<s>", "</s>", "▁", "\n", *letters]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def adding_bos() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", SPECIAL.index("<bos>"))]
    )
    return tokenizer


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """`pad_is_eos` with a chat template, `adds_bos`, `no_pad`, `no_template`, `sentencepiece`, `bos_in_template`; and
    the reasoning models `qwen3_like` and `r1_like`."""
    if kind == "pad_is_eos":
        return PreTrainedTokenizerFast(
            tokenizer_object=byte_level(), eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
        )
    if kind == "adds_bos":
        return PreTrainedTokenizerFast(
            tokenizer_object=adding_bos(), bos_token="<bos>", eos_token="<|endoftext|>", pad_token="<pad>"
        )
    if kind == "bos_in_template":
        return PreTrainedTokenizerFast(
            tokenizer_object=adding_bos(),
            bos_token="<bos>",
            eos_token="<|endoftext|>",
            pad_token="<pad>",
            chat_template="{{ bos_token }}" + CHATML,
        )
    if kind == "no_pad":
        return PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|endoftext|>", chat_template=CHATML)
    if kind == "no_template":
        return PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|endoftext|>", pad_token="<pad>")
    if kind == "sentencepiece":
        return PreTrainedTokenizerFast(
            tokenizer_object=sentencepiece_like(), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        )
    if kind in ("qwen3_like", "r1_like"):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=byte_level(),
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            chat_template=QWEN3_LIKE if kind == "qwen3_like" else R1_LIKE,
        )
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
        return tokenizer
    raise ValueError(kind)


KINDS = ("pad_is_eos", "adds_bos", "bos_in_template", "no_pad", "no_template", "sentencepiece")
