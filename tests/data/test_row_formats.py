"""Row formats: conversations and texts in the forms of published data sets, and what is trained and evaluated of them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config.pipeline import PipelineSettings
from pipelines.config.task import Task
from pipelines.data.examples import load_examples
from pipelines.data.format_detection import detect_format
from pipelines.data.row_formats import as_test_rows, fill_row
from pipelines.errors import DataError


def turns(*contents, **extra):
    return [
        {"role": "user" if index % 2 == 0 else "assistant", "content": text, **extra}
        for index, text in enumerate(contents)
    ]


def filled(fields, system=None, needs_answer=True, **keys):
    keys = keys or detect_format(fields)[0]
    return fill_row(Task(data="x.jsonl", **keys), fields, system, needs_answer=needs_answer)


def shape(row):
    """Roles and contents of all messages, and the supervised turns."""
    return [(m["role"], m["content"]) for m in row.turns.messages], row.turns.supervised_turns


FORMS = {
    "openai": {"messages": turns("a", "b", "c", "d")},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b"},
            {"from": "human", "value": "c"},
            {"from": "gpt", "value": "d"},
        ]
    },
    "parts": {
        "messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in turns("a", "b", "c", "d")]
    },
    "json text": {"messages": json.dumps(turns("a", "b", "c", "d"))},
}


@pytest.mark.parametrize("form", FORMS)
def test_conversations_in_every_form(form):
    (row,) = filled(FORMS[form])
    assert shape(row) == ([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], (1, 3))
    assert row.completion == "d" and row.prompt == "user: a\n\nassistant: b\n\nuser: c"


def test_prompt_and_completion_as_lists_of_messages():
    (row,) = filled({"prompt": turns("a", "b", "c"), "completion": [{"role": "assistant", "content": "d"}]})
    assert shape(row)[1] == (3,), "only the completion is trained"
    (one,) = filled({"prompt": turns("a", "b", "c"), "completion": {"from": "gpt", "value": "d"}})
    assert one.turns.messages == row.turns.messages, "LLaMA-Factory's preferences hold one message"
    assert filled({"prompt": "a", "completion": "b"})[0].turns is None


def test_alpaca():
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Hi.", "input": "", "output": "Hello."},
    ]
    assert [(row.prompt, row.completion) for fields in rows for row in filled(fields)] == [
        ("Add.\n\n1 2", "3"),
        ("Hi.", "Hello."),
    ]
    (row,) = filled({"instruction": "c", "input": "", "output": "d", "history": [["a", "b"]], "system": "S"})
    assert shape(row) == ([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")], (1, 3))


def test_unknown_columns_are_refused_with_what_to_write():
    with pytest.raises(
        DataError, match=r"the columns \(text, kind\) are of no known format; write prompt: \"\{text\}\""
    ):
        detect_format({"text": "x", "kind": "y", "split": "test"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, r"preferences \(columns chosen and rejected\)"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, r"preferences \(columns chosen and rejected\)"),
        ({"chosen_messages": [], "rejected_messages": []}, r"preferences \(columns chosen_messages and rejected_mess"),
        ({"text": "x", "split": "train"}, r"texts without a prompt \(column text\)"),
        ({"segments": [{"label": True, "text": "x"}]}, "segments .*; write them as messages, with train: false"),
        ({"rows": [1], "title": "x"}, r"write prompt: \"\{title\}\""),
        ({"rows": [1]}, r"write prompt: \"\{question\}\""),
    ],
)
def test_rows_of_other_trainings_are_refused_with_the_cause(fields, message):
    with pytest.raises(DataError, match=message):
        detect_format(fields)


@pytest.mark.parametrize("column", ["label", "kto_tag"])
def test_ratings_without_effect_are_named(column):
    for fields in ({"messages": turns("a", "b")}, {"prompt": "a", "completion": "b"}):
        assert f"the column {column} has no effect" in detect_format({**fields, column: True})[1]
        assert column not in detect_format({**fields, column: "spam"})[1]


def test_which_turns_are_trained():
    fields = {"messages": turns("a", "b", "c", "d"), "which": [True, False], "one": False}
    assert filled(fields, messages="messages", train_on="last")[0].turns.supervised_turns == (3,)
    assert filled(fields, messages="messages", train_on="which")[0].turns.supervised_turns == (1,)
    with pytest.raises(DataError, match="no turn of the assistant is trained"):
        filled(fields, messages="messages", train_on="one")
    with pytest.raises(DataError, match="train_on names the column whch, but the row has: messages, which, one"):
        filled(fields, messages="messages", train_on="whch")
    flagged = [dict(message) for message in fields["messages"]]
    flagged[1]["weight"], flagged[3]["train"] = 0, True
    assert filled({"messages": flagged})[0].turns.supervised_turns == (3,)


def test_which_turns_are_evaluated():
    rows = filled({"messages": turns("a", "b", "c", "d")}, messages="messages", evaluate_on="all")
    tests = list(as_test_rows(rows))
    assert [(row.turn, row.completion, row.turns.supervised_turns) for row in tests] == [(1, "b", (1,)), (3, "d", (3,))]
    assert [len(row.turns.messages) for row in tests] == [2, 4]


def test_the_system_turn_of_the_task_comes_first_if_the_conversation_has_none():
    (row,) = filled({"messages": turns("a", "b"), "who": "Ann"}, "You are {who}.", messages="messages")
    assert shape(row)[0][0] == ("system", "You are Ann.")
    own = [{"role": "system", "content": "own"}, *turns("a", "b")]
    assert shape(filled({"messages": own}, "Task.", messages="messages")[0])[0][0] == ("system", "own")


def test_a_last_turn_that_is_not_the_assistant_s_is_left_out():
    (row,) = filled({"messages": turns("a", "b", "c")})
    assert shape(row) == ([("user", "a"), ("assistant", "b")], (1,))


def test_prompts_without_an_answer():
    (row,) = filled({"messages": turns("a", "b", "c", "d")}, needs_answer=False)
    assert row.completion is None and [m["content"] for m in row.turns.messages] == ["a", "b", "c"]
    assert filled({"question": "q"}, needs_answer=False, prompt="{question}", completion="{answer}")[0].prompt == "q"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "assistant", "content": "a"}], "begins with a turn of the assistant"),
        ([{"role": "user", "content": "a"}], "no turn of the assistant"),
        ([], "has no messages"),
        (None, "has no messages"),
        ("hello", "not a list of messages"),
        ([{"role": "user"}], "column messages, turn 1"),
        ([{"role": "usr", "content": "x"}], "column messages, turn 1"),
        ([1], "column messages, turn 1"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "image"),
    ],
)
def test_bad_conversations(messages, message):
    with pytest.raises(DataError) as caught:
        filled({"messages": messages}, messages="messages")
    assert message in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "assistant", "system"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "tool_calls", "train", "weight"]), children, max_size=4
        )
    ),
    max_leaves=12,
)


@given(value=JSON)
@settings(max_examples=300, deadline=None)
def test_any_value_is_a_conversation_or_refused(value):
    try:
        rows = filled({"messages": value}, messages="messages")
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert rows[0].turns.supervised_turns


def test_a_column_with_a_conversation_is_never_filled_as_text():
    with pytest.raises(DataError, match="holds a conversation .* write messages: chat instead"):
        filled({"chat": turns("a", "b"), "a": "x"}, prompt="Chat: {chat}", completion="{a}")


def test_examples_of_a_task_without_templates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": turns(f"q{index}", "a", "more", "b"), "split": split}
        for index, split in enumerate(["train", "train", "test"])
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = PipelineSettings.model_validate({"tasks": {"chat": {"data": "chat.jsonl", "evaluate_on": "all"}}})
    examples = list(load_examples(pipeline))
    assert [(example.split, example.conversation.supervised_turns) for example in examples] == [
        ("train", (1, 3)),
        ("train", (1, 3)),
        ("test", (1,)),
        ("test", (3,)),
    ]
    assert [example.turn for example in examples[2:]] == [1, 3]


def test_jinja_templates():
    keys = {
        "template": "jinja",
        "prompt": "{{ q }}{% if x %} ({{ x }}){% endif %}",
        "completion": "{{ a | join(', ') }}",
    }
    assert [(row.prompt, row.completion) for row in filled({"q": "Q", "x": "", "a": ["b", "c"]}, **keys)] == [
        ("Q", "b, c")
    ]
    with pytest.raises(DataError, match="the template names the column q"):
        filled({"x": "1", "a": ["b"]}, **keys)
