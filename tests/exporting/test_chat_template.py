"""Templates of exports: variables, dates and the end of the prompt as in the run; values as Jinja."""

from types import SimpleNamespace

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from pipelines.config.chat_template import ChatTemplateSettings
from pipelines.data.chat_template import ChatTemplate
from pipelines.exporting.chat_template import export_template, jinja_literal
from pipelines.exporting.source import EvaluatedPrompt

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"


def source_of(text, **settings):
    tokenizer = SimpleNamespace(chat_template=text, special_tokens_map={"bos_token": "<s>"})
    template = ChatTemplate(tokenizer, ChatTemplateSettings(**settings))
    return SimpleNamespace(prompt_format=SimpleNamespace(template=template))


def prompt(text, task="t", content="hi", **variables):
    messages = [{"role": "user", "content": content}]
    return EvaluatedPrompt(task, 1, messages, None, variables, text, [], 8, None)


def rendered(source, messages=({"role": "user", "content": "hi"},), **kwargs):
    return _compile_jinja_template(source).render(messages=messages, add_generation_prompt=True, **kwargs)


@pytest.mark.parametrize(
    "value", [None, True, False, 3, -2.5, "a 'b' \"c\" \\ \n é", [1, "x", None], {"a": [True, {"b": "c"}]}]
)
def test_values_become_jinja(value):
    assert _compile_jinja_template(f"{{{{ ({jinja_literal(value)}) | tojson }}}}").render() == (
        _compile_jinja_template("{{ value | tojson }}").render(value=value)
    )


def test_shared_variables_become_defaults_and_others_are_named():
    text = TURNS + "{% if think %}<think>{% else %}<no>{% endif %}{{ style }}"
    one = prompt("<user>hi</><think>brief", think=True, style="brief")
    template = export_template(source_of(text), [one, one])
    assert rendered(template.sources) == one.text and template.task_variables == {} and not template.notes
    assert rendered(template.sources, think=False) == "<user>hi</><no>brief"
    two = prompt("<user>hi</><no>brief", task="u", think=False, style="brief")
    template = export_template(source_of(text), [one, two])
    assert template.task_variables == {"t": {"think": True}, "u": {"think": False}}
    assert "t: think=True; u: think=False" in template.notes[0]
    assert rendered(template.sources, think=True) == one.text


def test_the_date_is_that_of_the_run():
    text = "{% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}{% endif %}{{ d }}" + TURNS
    template = export_template(source_of(text, date="2024-07-26"), [prompt("26 Jul 2024<user>hi</>")])
    assert rendered(template.sources) == "26 Jul 2024<user>hi</>" and "2024-07-26" in template.notes[0]
    text = "{% set f = '%Y' %}{{ strftime_now(f) }}" + TURNS
    template = export_template(source_of(text, date="2024-07-26"), [prompt("2024<user>hi</>")])
    assert "writes the present day" in template.notes[0]


@pytest.mark.parametrize(
    ("generation", "trained"),
    [
        ("<assistant>", "<assistant><think>\n\n</think>\n\n"),  # an empty thought is part of the run's prompts
        ("<assistant> ", "<assistant>"),  # the space belongs to the answer
        ("<assistant><think>\n", "<assistant>"),
        ("<assistant>\n", "<assistant>\n"),
    ],
)
@pytest.mark.parametrize("end", ["", "\n"])
def test_the_prompt_ends_as_in_the_run(generation, trained, end):
    text = TURNS + "{% if add_generation_prompt %}{{ '" + generation.replace("\n", "\\n") + "' }}{% endif %}" + end
    prompts = [prompt(f"<user>{content}</>{trained}", content=content) for content in ("hi", "ho\n", "assistant")]
    template = export_template(source_of(text), prompts)
    for one in prompts:
        assert rendered(template.sources, one.messages) == one.text
    whole = _compile_jinja_template(template.sources).render(messages=prompts[0].messages)
    assert whole == "<user>hi</>"


def test_prompts_that_differ_otherwise_are_left_to_the_check():
    prompts = [prompt("<user>hi</>a"), prompt("<user>hi</>b")]
    assert export_template(source_of(TURNS), prompts).sources == TURNS


def test_plain_prompts_have_no_template():
    source = SimpleNamespace(prompt_format=SimpleNamespace(template=None))
    template = export_template(source, [prompt("hi")])
    assert template.sources is None and "plain prompts" in template.notes[0]
