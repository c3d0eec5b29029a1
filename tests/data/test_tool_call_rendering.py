"""Spans of turns with tool calls, with a template for each way in which published templates differ."""

import pytest

from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation
from tests.data.test_rendering import prompt_format, template

TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {}}}]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "count", "arguments": {"item": "tea"}}}],
}
MESSAGES = [
    {"role": "user", "content": "Q"},
    CALL,
    {"role": "tool", "content": "7"},
    {"role": "assistant", "content": "A"},
]
CALLS = "{%% for c in m.tool_calls or [] %%}<tool_call>{{ c.function.name }} %s</tool_call>{%% endfor %%}"
TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content }}" + CALLS + "{{ '<|im_end|>\n' }}"
AS_JSON = TURN % "{{ c.function.arguments | tojson }}"


def spans(source, messages=MESSAGES, tools=TOOLS, **kwargs):
    supervised = tuple(index for index, message in enumerate(messages) if message["role"] == "assistant")
    rendered = prompt_format(source).render(Conversation(messages, supervised, tools, **kwargs))
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize(
    "arguments",
    [
        "{{ c.function.arguments | tojson }}",
        "{{ 'of ' + c.function.arguments }}",  # fails on an object
        "{{ c.function.arguments }}",  # prints an object as Python does
        "{% if c.function.arguments is string %}{{ c.function.arguments }}"
        "{% else %}{{ c.function.arguments | tojson }}{% endif %}",
    ],
)
def test_arguments_are_written_as_json_whatever_the_template_takes(arguments):
    call, answer = spans(template(TURN % arguments))
    assert call.removesuffix("</tool_call><|im_end|>").endswith('{"item": "tea"}')
    assert answer == "A<|im_end|>"


@pytest.mark.parametrize("arguments", ["{{ c.function.arguments | tojson }}", "{{ 'of ' + c.function.arguments }}"])
def test_a_template_may_write_calls_only_where_the_content_is_null(arguments):
    turn = (TURN % arguments).replace("m.content", "(m.content or '')").replace("m.tool_calls or []", "calls")
    source = template("{% set calls = m.tool_calls if m.content is none else [] %}" + turn)
    assert spans(source)[0].endswith('{"item": "tea"}</tool_call><|im_end|>')


def test_a_template_that_needs_tools_gets_an_empty_list_of_them():
    source = "{% for t in tools %}{{ t.function.name }}\n{% endfor %}" + template(AS_JSON)
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert spans(source, turns, None) == ["A<|im_end|>"]
    assert spans(source)[1] == "A<|im_end|>"
    (note,) = prompt_format(source).notes()
    assert note.endswith("is for conversations with tools; it gets an empty list of them")
    assert not prompt_format(source).notes(has_tools=True)


@pytest.mark.parametrize(
    "tags", ["{{ m.content }}", "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"]
)
def test_calls_are_lost_even_if_the_list_of_tools_has_their_name(tags):
    turn = "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + tags + "{% else %}{{ m.content }}{% endif %}\n"
    source = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + template(turn)
    with pytest.raises(ChatTemplateError, match="does not write tool calls, so they would be lost"):
        spans(source)


def test_a_call_begins_where_it_leaves_a_generation_prompt_that_opens_a_thought():
    source = template(AS_JSON, "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}")
    assert spans(source)[0] == '<tool_call>count {"item": "tea"}</tool_call><|im_end|>'


def test_the_header_of_a_next_answer_is_no_part_of_a_call():
    source = template(AS_JSON, "{{ '<|im_start|>assistant\n' }}")
    assert spans(source) == ['<tool_call>count {"item": "tea"}</tool_call><|im_end|>', "A<|im_end|>"]


def test_a_call_is_found_where_the_tools_stand_before_the_last_user_turn():
    listed = "{% if m.role == 'user' and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}"
    source = template(listed + "TOOLS {{ tools | tojson }}{% endif %}" + AS_JSON)
    messages = [*MESSAGES, {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}]
    call, *answers = spans(source, messages)
    assert call == '<tool_call>count {"item": "tea"}</tool_call><|im_end|>'
    assert answers == ["A<|im_end|>", "A2<|im_end|>"]


def test_a_call_without_a_token_after_it_is_supervised_through_its_text():
    ends = "{% if not m.tool_calls %}{{ '<|im_end|>' }}{% endif %}{{ '\n' }}"
    assert spans(template(AS_JSON.replace("{{ '<|im_end|>\n' }}", ends)))[0].endswith('{"item": "tea"}</tool_call>')


def test_an_error_names_a_conversation_with_tool_calls():
    refusing = "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" + AS_JSON
    with pytest.raises(ChatTemplateError, match=r"rejects a conversation with tool calls \(no tools\)"):
        spans(template(refusing))


def test_a_thought_before_a_call_has_the_name_that_the_template_reads():
    planned = "{% if m.tool_plan %}<|START_THINKING|>{{ m.tool_plan }}<|END_THINKING|>{% endif %}"
    source = template(AS_JSON.replace("{%", planned + "{%", 1))
    messages = [MESSAGES[0], {**CALL, "reasoning_content": "Look."}]
    (call,) = spans(source, messages, with_reasoning=True)
    assert call.startswith("<|START_THINKING|>Look.<|END_THINKING|><tool_call>count")


def test_every_turn_is_supervised_where_only_the_last_answer_has_its_thought():
    """The prompt of the last turn then has the thought of the turn before it."""
    last = "{% set last = messages | selectattr('role', 'equalto', 'assistant') | list | last %}"
    thought = "{% if m.reasoning_content and m == last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    source = last + template("<|im_start|>{{ m.role }}\n" + thought + "{{ m.content }}<|im_end|>\n")
    messages = [
        {
            "role": role,
            "content": f"{role} {turn}",
            **({"reasoning_content": f"T{turn}"} if role == "assistant" else {}),
        }
        for turn in range(3)
        for role in ("user", "assistant")
    ]
    assert spans(source, messages, None, with_reasoning=True) == [
        "assistant 0<|im_end|>",
        "assistant 1<|im_end|>",
        "<think>T2</think>assistant 2<|im_end|>",
    ]
