"""Spans of rendered conversations, with a template for each way in which published templates differ."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config.chat_template import PLAIN_TEXT, ChatTemplateSettings
from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import ConfigError
from tests.tiny_tokenizers import KINDS, QWEN3_LIKE, R1_LIKE, make_tokenizer

START, END = "<|im_start|>", "<|im_end|>"
TURN = "{{ '<|im_start|>' + m.role + '\n' + %s + '<|im_end|>\n' }}"
GENERATION_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def template(body, prompt=GENERATION_PROMPT):
    return "{% for m in messages %}" + body + "{% endfor %}" + prompt


def answers(before="", content="m.content", after="", after_last="<|im_end|>\n", after_middle="<|im_end|>\n"):
    """A template whose assistant turns have the given parts around their contents."""
    end = f"{{% if loop.last %}}{after_last}{{% else %}}{after_middle}{{% endif %}}"
    assistant = f"<|im_start|>assistant\n{before}{{{{ {content} }}}}{after}{end}"
    return template("{% if m.role == 'assistant' %}" + assistant + "{% else %}" + TURN % "m.content" + "{% endif %}")


CASES = {
    "plain": (answers(), "Q<|im_end|>\n<|im_start|>assistant\n", "A<|im_end|>"),
    "empty thought": (
        answers(before="<think>\n\n</think>\n\n"),
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "A<|im_end|>",
    ),
    "channel": (answers(before="<|channel|>final<|message|>"), "<|channel|>final<|message|>", "A<|im_end|>"),
    "space": (answers(before=" "), "<|im_start|>assistant\n ", "A<|im_end|>"),
    "two end tokens": (
        answers(after_last="<pad><|im_end|>", after_middle="<pad><|im_end|>"),
        "assistant\n",
        "A<pad><|im_end|>",
    ),
    "white space before the end": (answers(after="\n"), "assistant\n", "A\n<|im_end|>"),
    "end of text after the end of turn": (
        answers(after_last="<|im_end|>\n<|endoftext|>"),
        "assistant\n",
        "A<|im_end|>",
    ),
    "adjacent end of text": (answers(after_last="<|im_end|><|endoftext|>"), "assistant\n", "A<|im_end|>"),
    "no end of the last turn": (answers(after_last="", after_middle=""), "assistant\n", "A<|im_start|>"),
    "next header always": (
        template(TURN % "m.content", "<|im_start|>assistant\n"),
        "<|im_start|>assistant\n",
        "A<|im_end|>",
    ),
    "other end in the middle": (
        answers(after_last="<|endoftext|>", after_middle="<|im_end|>"),
        "assistant\n",
        "A<|endoftext|>",
    ),
    "stripped": (answers(content="m.content | trim"), "assistant\n", "A<|im_end|>"),
    "content as parts": (
        template(
            "{{ '<|im_start|>' + m.role + '\n' }}{% for p in m.content %}{{ p.text }}{% endfor %}{{ '<|im_end|>\n' }}"
        ),
        "assistant\n",
        "A<|im_end|>",
    ),
}


def prompt_format(source, **kwargs):
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.chat_template = source
    return PromptFormat(tokenizer, ChatTemplateSettings(kwargs=kwargs))


def split(rendered):
    """The text before the last span, and the texts of all spans."""
    return rendered.text[: rendered.spans[-1][0]], [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("system", [None, "S"])
def test_the_span_is_what_the_model_is_to_write(case, system):
    source, prompt_end, supervised = CASES[case]
    formatted = prompt_format(source)
    before, (span,) = split(formatted.render(Conversation.single_turn("Q", "A", system)))
    assert before.endswith(prompt_end) and span == supervised
    assert formatted.render(Conversation.single_turn("Q", system=system)).text == before
    encoded = formatted.encode(Conversation.single_turn("Q", "A", system))
    assert formatted.encode(Conversation.single_turn("Q", system=system)).input_ids == encoded.prompt_ids
    assert encoded.input_ids[-1] in formatted.stop_ids


@pytest.mark.parametrize("case", CASES)
def test_three_turns(case):
    formatted = prompt_format(CASES[case][0])
    messages = [
        {"role": role, "content": f"{role[0].upper()}{turn}"} for turn in range(3) for role in ("user", "assistant")
    ]
    rendered = formatted.render(Conversation(messages, (1, 3, 5)))
    before, spans = split(rendered)
    assert [span[:2] for span in spans] == ["A0", "A1", "A2"]
    assert "U2" in before and "A2" not in before
    whole = formatted.template.render(messages if "parts" not in case else formatted.renderer._in_form(messages))
    assert whole.startswith(rendered.text) or "no end" in case
    encoded = formatted.encode(Conversation(messages, (1, 3, 5)))
    shown = [formatted.tokenizer.decode(encoded.input_ids[start:end]) for start, end in encoded.supervised_spans]
    assert [text.lstrip() for text in shown] == spans
    assert formatted.encode(Conversation(messages[:5])).input_ids == encoded.prompt_ids
    if case == "other end in the middle":
        assert spans == ["A0", "A1", "A2<|endoftext|>"]
        assert formatted.tokenizer.convert_tokens_to_ids("<|im_end|>") not in formatted.end_ids


def test_only_supervised_turns_have_spans():
    messages = [{"role": role, "content": f"{role}{turn}"} for turn in range(3) for role in ("user", "assistant")]
    encoded = prompt_format(CASES["plain"][0]).encode(Conversation(messages, (3,)))
    assert len(encoded.supervised_spans) == 1
    assert "user2" not in prompt_format(CASES["plain"][0]).tokenizer.decode(encoded.input_ids)


def test_thoughts():
    formatted = prompt_format(QWEN3_LIKE)
    without, (answer,) = split(formatted.render(Conversation.single_turn("Q", "A")))
    assert without.endswith("assistant\n<think>\n\n</think>\n\n") and answer == "A<|im_end|>"
    header, (thought,) = split(formatted.render(Conversation.single_turn("Q", "A", reasoning="T")))
    assert header.endswith("assistant\n") and thought == "<think>\nT\n</think>\n\nA<|im_end|>"
    assert formatted.render(Conversation.single_turn("Q", reasoning="")).text == header
    switched_off = prompt_format(QWEN3_LIKE, enable_thinking=False)
    assert split(switched_off.render(Conversation.single_turn("Q", "A"))) == (without, [answer])
    switched_on, (empty,) = split(
        prompt_format(QWEN3_LIKE, enable_thinking=True).render(Conversation.single_turn("Q", "A"))
    )
    assert switched_on == header and empty == "<think>\n\n</think>\n\nA<|im_end|>"


def test_a_template_that_leaves_thoughts_out():
    formatted = prompt_format(R1_LIKE)
    without, (answer,) = split(formatted.render(Conversation.single_turn("Q", "A")))
    assert without.endswith("assistant\n") and answer == "A<|im_end|>"
    header, (thought,) = split(formatted.render(Conversation.single_turn("Q", "A", reasoning="T")))
    assert header.endswith("assistant\n<think>\n") and thought == "T\n</think>\n\nA<|im_end|>"
    assert formatted.render(Conversation.single_turn("Q", reasoning="")).text == header


def test_a_thought_that_ends_with_the_end_of_an_answer_is_refused():
    formatted = prompt_format(
        answers(before="{% if m.reasoning_content %}<think>{{ m.reasoning_content }}<|im_end|></think>{% endif %}")
    )
    for conversation in (
        Conversation.single_turn("Q", "A", reasoning="T"),
        Conversation.single_turn("Q", reasoning=""),
    ):
        with pytest.raises(ConfigError, match=r"ends a thought with <\|im_end\|>, which also ends an answer"):
            formatted.render(conversation)
    assert split(formatted.render(Conversation.single_turn("Q", "A")))[1] == ["A<|im_end|>"]


def test_a_thought_that_no_template_and_no_marker_can_write():
    with pytest.raises(ChatTemplateError, match="writes no reasoning; remove `reasoning`"):
        prompt_format(CASES["plain"][0]).render(Conversation.single_turn("Q", "A", reasoning="T"))


TAGGED = template(
    "{% if m.role == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}" + TURN % "m.content" + "{% endif %}"
)
TAGGED_HEADER = template(
    "{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}" + TURN % "m.content" + "{% endif %}"
)


@pytest.mark.parametrize("source", [TAGGED, TAGGED_HEADER])
def test_spans_are_those_of_the_template_s_own_tags(source):
    formatted = prompt_format(source)
    messages = [{"role": role, "content": f"{role} {turn}"} for turn in range(3) for role in ("user", "assistant")]
    encoded = formatted.encode(Conversation(messages, (1, 3, 5)))
    mask = formatted.tokenizer.apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )["assistant_masks"]
    supervised = {index for start, end in encoded.supervised_spans for index in range(start, end)}
    marked = {index for index, marks in enumerate(mask) if marks}
    if source == TAGGED:
        assert supervised == marked
    else:  # without the generation prompt, which inference supplies, and what follows the end of the turn
        assert supervised < marked
        texts = [formatted.tokenizer.decode(encoded.input_ids[start:end]) for start, end in encoded.supervised_spans]
        assert texts == [f"assistant {turn}<|im_end|>" for turn in range(3)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "drops the assistant's answer"),
        ("{{ messages[-1].content }}", "drops the user turn"),
        (template("{{ m.content | length }}{{ m.content | upper }}"), "drops the prompt"),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content | length }} {% endif %}"
            "{{ m.content }}<|im_end|>{% endfor %}",
            "writes other text around an answer depending on what the answer is",
        ),
        (
            template("{% if m.role == 'user' %}{{ m.content }}{% else %}{{ m.content }}{{ bos_token }}{% endif %}"),
            "begins a text",
        ),
    ],
)
def test_templates_that_are_refused(source, message):
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.chat_template, tokenizer.bos_token = source, "<bos>"
    with pytest.raises(ChatTemplateError) as caught:
        PromptFormat(tokenizer).render(Conversation.single_turn("Q is long", "A"))
    assert message in str(caught.value)


def test_a_conversation_without_a_chat_template():
    with pytest.raises(ConfigError, match="a conversation needs a chat template; write pipeline.chat_template: FILE"):
        PromptFormat(make_tokenizer("no_template")).encode(
            Conversation([{"role": role, "content": "x"} for role in ("user", "assistant") * 2], (3,))
        )


CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
}
WITH_TOOLS = template(
    "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }}{% endfor %}{{ '<|im_end|>\n' }}"
)


def test_a_turn_with_tool_calls_is_supervised_as_the_template_writes_it():
    messages = [
        {"role": "user", "content": "Q"},
        CALL,
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "A"},
    ]
    _, spans = split(prompt_format(WITH_TOOLS).render(Conversation(messages, (1, 3))))
    assert spans == ["CALL f<|im_end|>", "A<|im_end|>"]


def test_a_turn_with_calls_where_only_the_last_turn_has_a_thought():
    thought = "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
    calls = "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }}{% endfor %}"
    source = template(
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        + thought
        + "{% endif %}{{ m.content }}"
        + calls
        + "<|im_end|>\n"
    )
    messages = [{"role": "user", "content": "Q"}, CALL, {"role": "tool", "content": "7"}]
    conversation = Conversation([*messages, {"role": "assistant", "content": "A"}], (1, 3))
    rendered = prompt_format(source).render(conversation)
    _, spans = split(rendered)
    assert spans == ["CALL f<|im_end|>", "A<|im_end|>"]
    assert rendered.text[: rendered.spans[0][0]].endswith("Q<|im_end|>\n<|im_start|>assistant\n")


def test_calls_that_the_template_drops_are_refused():
    messages = [{"role": "user", "content": "Q"}, CALL, {"role": "user", "content": "R"}]
    for turns in ((1,), (3,), (1, 3)):
        conversation = Conversation([*messages, {"role": "assistant", "content": "A"}], turns)
        with pytest.raises(ChatTemplateError, match="does not write tool calls, so they would be lost"):
            prompt_format(template(TURN % "m.content")).render(conversation)


def test_a_note_says_that_a_template_lists_no_tools():
    (note,) = prompt_format(template(TURN % "m.content")).notes(has_tools=True)
    assert note.endswith("does not list tools; the column of `tools` has no effect")
    with_tools = "{% for t in tools or [] %}{{ t.name }}{% endfor %}" + template(TURN % "m.content")
    assert not prompt_format(with_tools).notes(has_tools=True)


TEXTS = st.text(st.sampled_from("ab the\n.,'\"éß漢😀1 \t"), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
def test_the_prompt_does_not_depend_on_the_answer(kind, prompt, answer):
    if not prompt.strip() or not answer.strip():
        return
    formatted = FORMATS.setdefault(kind, PromptFormat(make_tokenizer(kind)))
    encoded = formatted.encode(Conversation.single_turn(prompt, answer))
    assert encoded.prompt_ids == formatted.encode(Conversation.single_turn(prompt)).input_ids
    assert encoded.completion_ids[-len(formatted.end_ids) :] == formatted.end_ids


FORMATS: dict = {}


def test_spaces_at_the_end_of_a_plain_prompt_belong_to_the_answer():
    formatted = PromptFormat(make_tokenizer("no_template"), PLAIN_TEXT)
    encoded = formatted.encode(Conversation.single_turn("Is it? ", "a"))
    whole = formatted.tokenizer("Is it? a")["input_ids"]
    assert encoded.input_ids[:-1] == whole, "one token, not a space and a letter"
    assert formatted.tokenizer.decode(encoded.prompt_ids) == "Is it?"
