"""What the model is trained on, token by token, over the tokenizers that trip other tools."""

import pytest

from pipelines.errors import ConfigError
from pipelines.prompts import PromptFormat
from tests.tiny import KINDS, make_tokenizer

PROMPT, ANSWER = "Is the tea in?", "negative"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_template_completion_and_end(kind):
    tokenizer = make_tokenizer(kind)
    prompts = PromptFormat(tokenizer)
    text = prompts.prompt_text(PROMPT)
    encoded = prompts.encode(text, ANSWER)
    whole = tokenizer(text + ANSWER, add_special_tokens=kind in ("adds_bos", "sentencepiece"))["input_ids"]
    assert encoded.input_ids == [*whole, prompts.end_id]
    assert tokenizer.decode(encoded.supervised[:-1]).strip() == ANSWER
    assert encoded.input_ids[: encoded.supervised_from] == prompts.prompt_ids(text)


@pytest.mark.parametrize("kind", KINDS)
def test_one_bos_at_most_and_none_in_the_completion(kind):
    prompts = PromptFormat(make_tokenizer(kind))
    encoded = prompts.encode(prompts.prompt_text(PROMPT), ANSWER)
    bos = prompts.tokenizer.bos_token_id
    expected = 1 if kind in ("adds_bos", "bos_in_template", "sentencepiece") else 0
    assert encoded.input_ids.count(bos) == expected
    assert bos not in encoded.supervised or bos is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_is_trained_and_stops(kind):
    prompts = PromptFormat(make_tokenizer(kind))
    encoded = prompts.encode(prompts.prompt_text(PROMPT), ANSWER)
    end = {"pad_is_eos": "<|im_end|>", "bos_in_template": "<|im_end|>", "no_pad": "<|im_end|>", "sentencepiece": "</s>"}
    assert prompts.tokenizer.convert_ids_to_tokens(encoded.supervised[-1]) == end.get(kind, "<|endoftext|>")
    assert encoded.supervised[-1] in prompts.stop_ids


def test_end_of_turn_inside_the_prompt_stays_there():
    prompts = PromptFormat(make_tokenizer("pad_is_eos"))
    encoded = prompts.encode(prompts.prompt_text(PROMPT, system="Be brief."), ANSWER)
    head = encoded.input_ids[: encoded.supervised_from]
    assert head.count(prompts.end_id) == 2
    assert "Be brief." in prompts.tokenizer.decode(head)


def test_without_a_template_the_prompt_is_plain():
    prompts = PromptFormat(make_tokenizer("no_template"))
    assert prompts.prompt_text("a", system="b") == "b\n\na"
    assert PromptFormat(make_tokenizer("pad_is_eos"), chat_template=False).prompt_text("a") == "a"


def test_a_template_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="no chat template"):
        PromptFormat(make_tokenizer("no_template"), chat_template=True)


def test_a_template_without_a_system_turn_says_so():
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    with pytest.raises(ConfigError, match="takes no system turn .no system.; leave `system` out"):
        PromptFormat(tokenizer).prompt_text("a", system="b")


def test_a_completion_that_merges_with_the_prompt_keeps_the_prompt_tokens():
    prompts = PromptFormat(make_tokenizer("no_template"))
    encoded = prompts.encode("t", "he")
    assert encoded.input_ids[: encoded.supervised_from] == prompts.prompt_ids("t")
    assert prompts.tokenizer.decode(encoded.input_ids[:-1]) == "the"
