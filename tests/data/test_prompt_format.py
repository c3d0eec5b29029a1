"""Tokens of prompts and completions, for the kinds of tokenizer that break fine-tuning tools."""

import pytest

from pipelines.config.chat_template import PLAIN_TEXT, ChatTemplateSettings
from pipelines.data.conversation import Conversation
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import ConfigError
from tests.tiny_tokenizers import KINDS, make_tokenizer

PROMPT, ANSWER = "Is the tea in?", "negative"


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_prompt_completion_and_end(kind):
    tokenizer = make_tokenizer(kind)
    prompt_format = PromptFormat(tokenizer)
    text = prompt_format.render_prompt(Conversation.single_turn(PROMPT))
    encoded = prompt_format.encode(Conversation.single_turn(PROMPT, ANSWER))
    together = tokenizer(text + ANSWER, add_special_tokens=kind in ("adds_bos", "sentencepiece"))["input_ids"]
    assert encoded.input_ids == [*together, prompt_format.end_id]
    assert tokenizer.decode(encoded.completion_ids[:-1]).strip() == ANSWER
    assert encoded.prompt_ids == prompt_format.encode(Conversation.single_turn(PROMPT)).prompt_ids


@pytest.mark.parametrize("kind", KINDS)
def test_at_most_one_bos(kind):
    prompt_format = PromptFormat(make_tokenizer(kind))
    encoded = prompt_format.encode(Conversation.single_turn(PROMPT, ANSWER))
    bos = prompt_format.tokenizer.bos_token_id
    expected = 1 if kind in ("adds_bos", "bos_in_template", "sentencepiece") else 0
    assert encoded.input_ids.count(bos) == expected
    assert bos not in encoded.completion_ids or bos is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_token_is_supervised_and_stops(kind):
    prompt_format = PromptFormat(make_tokenizer(kind))
    encoded = prompt_format.encode(Conversation.single_turn(PROMPT, ANSWER))
    end = {"pad_is_eos": "<|im_end|>", "bos_in_template": "<|im_end|>", "no_pad": "<|im_end|>", "sentencepiece": "</s>"}
    assert prompt_format.tokenizer.convert_ids_to_tokens(encoded.completion_ids[-1]) == end.get(kind, "<|endoftext|>")
    assert encoded.completion_ids[-1] in prompt_format.stop_ids


def test_end_of_turn_within_the_prompt():
    prompt_format = PromptFormat(make_tokenizer("pad_is_eos"))
    encoded = prompt_format.encode(Conversation.single_turn(PROMPT, ANSWER, "Be brief."))
    head = encoded.prompt_ids
    assert head.count(prompt_format.end_id) == 2
    assert "Be brief." in prompt_format.tokenizer.decode(head)


def test_without_a_template_the_prompt_is_plain():
    prompt_format = PromptFormat(make_tokenizer("no_template"))
    assert prompt_format.render_prompt(Conversation.single_turn("a", system="b")) == "b\n\na"
    assert PromptFormat(make_tokenizer("pad_is_eos"), PLAIN_TEXT).render_prompt(Conversation.single_turn("a")) == "a"


def test_a_missing_template_is_an_error():
    with pytest.raises(ConfigError, match="no chat template"):
        PromptFormat(make_tokenizer("no_template"), ChatTemplateSettings(enabled=True))


def test_a_completion_that_merges_with_the_prompt_keeps_the_prompt_tokens():
    prompt_format = PromptFormat(make_tokenizer("no_template"))
    encoded = prompt_format.encode(Conversation.single_turn("t", "he"))
    assert encoded.prompt_ids == prompt_format.encode(Conversation.single_turn("t")).prompt_ids
    assert prompt_format.tokenizer.decode(encoded.input_ids[:-1]) == "the"
