"""Tokens of prompts and completions, for the kinds of tokenizer that break fine-tuning tools."""

import pytest

from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import ConfigError
from tests.tiny_tokenizers import KINDS, make_tokenizer

PROMPT, ANSWER = "Is the tea in?", "negative"


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_prompt_completion_and_end(kind):
    tokenizer = make_tokenizer(kind)
    prompts = PromptFormat(tokenizer)
    text = prompts.render_prompt(PROMPT)
    encoded = prompts.encode(text, ANSWER)
    whole = tokenizer(text + ANSWER, add_special_tokens=kind in ("adds_bos", "sentencepiece"))["input_ids"]
    assert encoded.input_ids == [*whole, prompts.end_id]
    assert tokenizer.decode(encoded.completion_ids[:-1]).strip() == ANSWER
    assert encoded.prompt_ids == prompts.encode_prompt(text)


@pytest.mark.parametrize("kind", KINDS)
def test_at_most_one_bos(kind):
    prompts = PromptFormat(make_tokenizer(kind))
    encoded = prompts.encode(prompts.render_prompt(PROMPT), ANSWER)
    bos = prompts.tokenizer.bos_token_id
    expected = 1 if kind in ("adds_bos", "bos_in_template", "sentencepiece") else 0
    assert encoded.input_ids.count(bos) == expected
    assert bos not in encoded.completion_ids or bos is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_token_is_supervised_and_stops(kind):
    prompts = PromptFormat(make_tokenizer(kind))
    encoded = prompts.encode(prompts.render_prompt(PROMPT), ANSWER)
    end = {"pad_is_eos": "<|im_end|>", "bos_in_template": "<|im_end|>", "no_pad": "<|im_end|>", "sentencepiece": "</s>"}
    assert prompts.tokenizer.convert_ids_to_tokens(encoded.completion_ids[-1]) == end.get(kind, "<|endoftext|>")
    assert encoded.completion_ids[-1] in prompts.stop_ids


def test_end_of_turn_within_the_prompt():
    prompts = PromptFormat(make_tokenizer("pad_is_eos"))
    encoded = prompts.encode(prompts.render_prompt(PROMPT, system="Be brief."), ANSWER)
    head = encoded.prompt_ids
    assert head.count(prompts.end_id) == 2
    assert "Be brief." in prompts.tokenizer.decode(head)


def test_without_a_template_the_prompt_is_plain():
    prompts = PromptFormat(make_tokenizer("no_template"))
    assert prompts.render_prompt("a", system="b") == "b\n\na"
    assert PromptFormat(make_tokenizer("pad_is_eos"), chat_template=False).render_prompt("a") == "a"


def test_a_missing_template_is_an_error():
    with pytest.raises(ConfigError, match="no chat template"):
        PromptFormat(make_tokenizer("no_template"), chat_template=True)


def test_a_template_without_system_turns():
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    with pytest.raises(
        ConfigError,
        match=r"does not support a system turn \(no system\); leave `system` out .*, or set pipeline.chat_template: false",
    ):
        PromptFormat(tokenizer).render_prompt("a", system="b")


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{% if %}x", r"is not valid Jinja (its line 1: "),
        ("a\n{{ messages", r"is not valid Jinja (its line 2: "),
        ("{{ messages | tojsn }}", r"is not valid Jinja (its line 1: No filter named 'tojsn'"),
        ("{{ raise_exception('only tools') }}", "rejects a user turn and its answer (only tools)"),
        ("{{ messages[0].content + 1 }}", "fails (TypeError: "),
        ("{{ documents[0].text }}", "fails (UndefinedError: "),
        ("{{ messages[7].content.x }}", "fails (UndefinedError: "),
        ("{{ 1 // 0 }}", "fails (ZeroDivisionError: "),
        ("{% for m in messages %}{{ m.content | int + 'a' }}{% endfor %}", "fails (TypeError: "),
        ({"tool_use": "x", "rag": "y"}, "this model has several chat templates (tool_use, rag) and no default"),
    ],
)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_causes_of_broken_templates(template, cause, system):
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.chat_template = template
    with pytest.raises(ChatTemplateError) as caught:
        PromptFormat(tokenizer).render_prompt("a", system=system)
    (problem,) = caught.value.problems
    assert cause in problem.message and "`system`" not in problem.message and "\n" not in problem.message
    assert problem.message.endswith("; set pipeline.chat_template: false to write prompts without it")


def test_a_completion_that_merges_with_the_prompt_keeps_the_prompt_tokens():
    prompts = PromptFormat(make_tokenizer("no_template"))
    encoded = prompts.encode("t", "he")
    assert encoded.prompt_ids == prompts.encode_prompt("t")
    assert prompts.tokenizer.decode(encoded.input_ids[:-1]) == "the"
