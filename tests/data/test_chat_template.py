"""Errors of chat templates: the cause, and what to change."""

import pytest

from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import ConfigError
from tests.tiny_tokenizers import make_tokenizer


def test_a_template_without_system_turns():
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    with pytest.raises(
        ConfigError,
        match=r"does not support a system turn \(no system\); leave `system` out .*, or set "
        r"pipeline.chat_template: false",
    ):
        PromptFormat(tokenizer).render_prompt(Conversation.single_turn("a", system="b"))


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
