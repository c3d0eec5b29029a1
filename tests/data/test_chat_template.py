"""Errors of chat templates: the cause, and what to change."""

import pytest

from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation
from pipelines.data.prompt_format import PromptFormat
from tests.tiny_tokenizers import make_tokenizer

REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
DROPS = "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}"
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.mark.parametrize("template", [REFUSES + TURNS, DROPS + TURNS])
def test_a_template_without_system_turns_has_the_system_text_in_the_first_user_turn(template):
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.chat_template = template
    prompt_format = PromptFormat(tokenizer)
    merged = "<|im_start|>user\nb\n\na<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_format.render_prompt(Conversation.single_turn("a", system="b")) == merged
    assert prompt_format.render_prompt(Conversation.single_turn("a", "x", system="b")) == merged
    assert "the text of `system` is put before the first user turn" in prompt_format.notes(has_system=True)[0]
    assert prompt_format.notes() == []


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
        PromptFormat(tokenizer).render_prompt(Conversation.single_turn("a", system=system))
    (problem,) = caught.value.problems
    assert cause in problem.message and "`system`" not in problem.message and "\n" not in problem.message
    assert problem.message.endswith("; set pipeline.chat_template: false to write prompts without it")
