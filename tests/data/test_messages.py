"""Messages: every form of a conversation in a row becomes the same turns, and what is none is one clear error."""

import json
import random

import pytest

from pipelines.data.messages import answer_text, parse_messages, transcript
from pipelines.data.tool_calls import parse_tool_calls, parse_tools, without_nulls
from pipelines.errors import DataError
from pipelines.storage.strict_json import NonTextValue, infinity

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def user(content, **keys):
    return [{"role": "user", "content": content, **keys}]


def assistant(**keys):
    return [{"role": "assistant", **keys}]


@pytest.mark.parametrize(
    ("value", "messages"),
    [
        (TURNS, TURNS),
        (json.dumps(TURNS), TURNS),
        ([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], TURNS),
        ([{"from": "User", "value": "Hi"}, {"from": " ChatGPT ", "value": "Hello"}], TURNS),
        ([{"role": "user", "value": "Hi"}, {"from": "bing", "content": "Hello"}], TURNS),
        ({"from": ["human", "gpt"], "value": ["Hi", "Hello"]}, TURNS),
        (
            [
                {"role": "user", "content": "Hi", "name": None, "tool_calls": None, "train": None},
                {"role": "assistant", "content": "Hello", "name": None, "tool_calls": [], "train": None},
            ],
            TURNS,
        ),
        (user([{"type": "text", "text": "a"}, {"type": "text", "text": " b"}, "c"]), user("a bc")),
        (user([{"type": "text", "value": "a", "text": None}]), user("a")),
        (user({"type": "input_text", "text": "a"}), user("a")),
        (user(5), user("5")),
        ([{"role": "developer", "content": "Be."}], [{"role": "system", "content": "Be."}]),
        ([{"role": "system", "content": None}], [{"role": "system", "content": ""}]),
        (
            [{"role": "ipython", "content": "2", "name": "add"}, {"from": "observation", "value": ""}],
            [{"role": "tool", "content": "2", "name": "add"}, {"role": "tool", "content": ""}],
        ),
        (
            [{"role": "function", "content": "2", "tool_call_id": "c1"}],
            [{"role": "tool", "content": "2", "tool_call_id": "c1"}],
        ),
        (assistant(content=None, tool_calls=[CALL]), assistant(content="", tool_calls=[CALL])),
        (
            assistant(tool_calls=[{"id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}}]),
            assistant(content="", tool_calls=[{"id": "c1", **CALL}]),
        ),
        (assistant(content="", function_call=CALL["function"]), assistant(content="", tool_calls=[CALL])),
        (
            [{"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}],
            assistant(content="", tool_calls=[CALL]),
        ),
        (
            [{"from": "function_call", "value": '[{"name": "add", "arguments": {"a": 1}}]'}],
            assistant(content="", tool_calls=[CALL]),
        ),
        (
            assistant(content=[{"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'}]),
            assistant(content="", tool_calls=[CALL]),
        ),
        (
            assistant(content="Hello", reasoning="Why?", thinking=None),
            assistant(content="Hello", reasoning_content="Why?"),
        ),
        (
            assistant(content=[{"type": "reasoning", "value": "Why?"}, {"type": "text", "value": "Hello"}]),
            assistant(content="Hello", reasoning_content="Why?"),
        ),
        (assistant(content="Hello", reasoning_content=""), assistant(content="Hello")),
    ],
)
def test_forms_of_a_conversation(value, messages):
    assert parse_messages("m", value).messages == messages


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "column m has no messages .null.; write"),
        ("", "holds an empty text, not a list of messages"),
        ("Hi there", "holds the text 'Hi there', not a list of messages"),
        ("[{'role': 'user', 'content': 'Hi'}]", "is not JSON .*with double quotes .json.dumps"),
        ('[{"role": "user"', "is not JSON"),
        (5, "holds no list of messages"),
        ({"role": "user", "content": "Hi"}, "holds no list of messages"),
        ([], "the list is empty"),
        (["Hi", "Hello"], "turn 1 is a text, not an object"),
        ([["user", "Hi"]], "turn 1 is a value, not an object"),
        ([None], "turn 1 is null"),
        ([{}], "turn 1 has no role .its keys: none."),
        ([{"content": "Hi"}], "turn 1 has no role .its keys: content."),
        ([{"role": 5, "content": "Hi"}], "has the role 5, which is not known"),
        ([{"role": "asistant", "content": "Hi"}], "did you mean assistant"),
        ([{"role": "narrator", "content": "Hi"}], "write system, user, assistant or tool"),
        ([{"role": "user", "from": "gpt", "content": "Hi"}], "two roles, 'user' and 'gpt'"),
        ([*TURNS, *user("  ")], "turn 3 .user. is empty"),
        (assistant(content=None), "turn 1 .assistant. is empty"),
        (user("Hi", value="Ho"), "two different texts, in content and value"),
        (user([{"type": "image_url", "image_url": {"url": "x"}}]), "part 1 of the content is an image, .*text only"),
        (user([{"type": "text", "text": "a"}, {"type": "input_audio"}]), "part 2 of the content is an audio"),
        (user([{"type": "image", "image": "x.png"}]), "an image"),
        (user("<image>", images=["x.png"]), "has images, but alfine trains on text only"),
        (user([{"type": "code", "text": "a"}]), "has the type 'code'"),
        (user([{"type": "text"}]), "part 1 of the content has no text"),
        (user([5]), "part 1 of the content is no object"),
        (user([{"type": "text", "text": ["a"]}]), "its text is a list"),
        (user({"a": 1}), "its content is an object"),
        (user("a\0"), "NUL"),
        (user(infinity("Infinity")), "is Infinity"),
        (user(NonTextValue("AA==", "is bytes")), "is bytes"),
        (user("Hi", tool_calls=[CALL]), "turn 1 is the user's and has tool calls"),
        (user("Hi", reasoning="x"), "turn 1 is the user's and has a thought"),
        (assistant(content="a", reasoning=["x"]), "reasoning is no text"),
        (assistant(content="a", reasoning="x", thinking="y"), "two different thoughts, in reasoning and thinking"),
        (assistant(tool_calls="add(1)"), "tool_calls is not JSON"),
        (assistant(tool_calls=[{"arguments": {}}]), "has no name of a tool"),
        (assistant(tool_calls=[{"name": "add", "arguments": [1]}]), "the arguments of add are no object"),
        (assistant(tool_calls=[{"name": "add", "arguments": "1,2"}]), "arguments of add is not JSON"),
        (assistant(tool_calls=[{"name": "add", "arguments": {"a": infinity("Infinity")}}]), "is Infinity"),
        ([{"from": "function_call", "value": "add(1)"}], "turn 1 is not JSON"),
        ([{"from": "function_call", "value": "[]"}], "holds no tool call"),
        (user("Hi", train=True), "turn 1 is the user's and is to be trained"),
        (assistant(content="a", weight=0.5), "weight is 0.5; write 0 or 1: turns are trained or not, not weighted"),
        (assistant(content="a", train="yes"), "train is 'yes'; write true or false"),
        (assistant(content="a", train=True, weight=0), "train and weight contradict each other"),
        (assistant(content="a", train_detail=[{"begin_offset": 0}]), "parts of a turn cannot be chosen"),
        (
            assistant(content=[{"type": "text", "text": "a", "train": False}, {"type": "text", "text": "b"}]),
            "parts of a turn cannot be trained alone",
        ),
    ],
)
def test_what_is_no_conversation(value, message):
    with pytest.raises(DataError, match=message):
        parse_messages("m", value)


def test_flags_of_turns():
    value = [
        *user("a", train=False),
        *assistant(content="b", weight=0),
        *user("c", loss_weight=0.0),
        *assistant(content="d", train=True),
        *assistant(content="e"),
        *assistant(content=[{"type": "text", "text": "f", "train": False}]),
    ]
    assert parse_messages("m", value).flags == [False, False, False, True, None, False]


def test_unused_keys_are_named():
    assert parse_messages("m", user("a", id=3, date=None)).unused_keys == ("id",)


@pytest.mark.parametrize(
    "value",
    [
        [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
        [{"name": "add", "parameters": {"type": "object"}}],
        [{"name": "add", "parameters": '{"type": "object"}', "description": None}],
        '[{"name": "add", "parameters": {"type": "object"}}]',
        ['{"name": "add", "parameters": {"type": "object"}}'],
        {"name": "add", "parameters": {"type": "object"}},
    ],
)
def test_forms_of_tools(value):
    expected = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    assert parse_tools("tools", value) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "holds no list of tools"),
        ("add", "column tools is not JSON"),
        ([5], "tool 1 is no object"),
        ([{"description": "x"}], "tool 1 has no name"),
        ([{"function": {"name": ""}}], "tool 1 has no name"),
        ([{"name": "add", "parameters": "x"}], "tool 1, parameters is not JSON"),
        ([{"name": "add", "parameters": {"x": infinity("Infinity")}}], "is Infinity"),
    ],
)
def test_what_are_no_tools(value, message):
    with pytest.raises(DataError, match=message):
        parse_tools("tools", value)


@pytest.mark.parametrize("value", [None, "", " ", []])
def test_rows_without_tools(value):
    assert parse_tools("tools", value) is None


def test_nulls_of_parquet_objects():
    assert without_nulls({"a": None, "b": [{"c": None, "d": 0}]}) == {"b": [{"d": 0}]}


def test_texts_of_turns():
    call = {"role": "assistant", "content": "", "tool_calls": parse_tool_calls("t", CALL)}
    assert answer_text(call) == '{"name": "add", "arguments": {"a": 1}}'
    assert transcript([*TURNS, call]) == (
        'user: Hi\n\nassistant: Hello\n\nassistant: {"name": "add", "arguments": {"a": 1}}'
    )
    assert transcript(TURNS[:1]) == "Hi"


def _mutated(value, rng):
    """The value with one node at a random depth replaced, removed, renamed or repeated."""
    odd = [None, True, 0, 0.5, -1, "", " ", "x", "\0", [], {}, [[]], [None], {"a": {}}, infinity("Infinity"), "[" * 99]
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        changed = {**value}
        match rng.randrange(4):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice(["role", "from", "content", "value", "tool_calls", "train", "text", "type"])] = (
                    changed.pop(key)
                )
            case _:
                changed[key] = _mutated(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], *[_mutated(value[index], rng)] * rng.randrange(3), *value[index + 1 :]]
    return rng.choice(odd)


def test_fuzzed_conversations_are_turns_or_one_error():
    seeds = [
        [*user("a", train=False), *assistant(content="b", tool_calls=[CALL], weight=1, reasoning="c")],
        [{"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}],
        assistant(content=[{"type": "text", "text": "a", "train": True}, {"type": "tool_call", "value": CALL}]),
        {"role": ["user", "assistant"], "content": ["a", "b"]},
    ]
    rng = random.Random(5)
    for _ in range(20_000):
        value = rng.choice(seeds)
        for _ in range(rng.randrange(1, 4)):
            value = _mutated(value, rng)
        if rng.random() < 0.2:
            value = json.dumps(value, default=lambda other: other.text)
        try:
            parsed = parse_messages("m", value)
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 400
            continue
        assert len(parsed.messages) == len(parsed.flags) > 0
        assert all(isinstance(message["content"], str) for message in parsed.messages)
        transcript(parsed.messages)
