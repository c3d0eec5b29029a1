"""Templates: columns as text, and errors with advice."""

import pytest

from pipelines.data.templates import fill, fill_nonempty, fill_system, is_valid_placeholder
from pipelines.errors import DataError
from pipelines.storage.strict_json import parse


def test_fill():
    assert fill("{{{a}}} {b} {c} {d}", {"a": "x", "b": 2.5, "c": True, "d": 7}) == "{x} 2.5 true 7"
    # A column's text is never taken for a template.
    assert fill("{a}", {"a": "{b}"}) == "{b}"


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("1", "1"),
        ("1.0", "1.0"),
        ("-0.0", "-0.0"),
        ("1e22", "1e+22"),
        ("0.1", "0.1"),
        ("false", "false"),
        ("98765432109876543210", "98765432109876543210"),
        ('"\\u2028\\u0007"', "\u2028\x07"),
        ('"\\ud83d\\ude00"', "😀"),
    ],
)
def test_values_as_in_json(written, text):
    assert fill("{a}", {"a": parse(written)}) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "column a has no value .*; fill it in, or drop the row"),
        (float("nan"), "column a has no value"),
        (float("inf"), "column a is Infinity, which has no text form"),
        ("x\0y", "column a contains a NUL character, as UTF-16 and binary files do"),
        (
            [{"role": "user", "content": "x"}],
            r"holds a conversation \(a list of messages\); write messages: a instead",
        ),
        ([{"from": "human", "value": "x"}], r"holds a conversation .* write messages: a instead"),
        (["x", "y"], r'column a holds a list, not a text; join it \(jq: .a | join\("'),
        ([], "holds a list"),
        ([1, 2], "holds a list, not a text; move the part"),
        ({"b": "x"}, "column a holds an object, not a text; move the part you need into its own column"),
    ],
)
def test_values_without_text(value, message):
    with pytest.raises(DataError, match=message):
        fill("{a}", {"a": value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"a": 1, "split": "train"}, "names the column {z}, but the row has: a$"),
        ({"Z": 1}, r"the row has: Z; did you mean \{Z\}\?"),
        ({"z:utc": 1}, "the row has: z:utc; 'z:utc' cannot be used in braces, rename it$"),
        ({f"c{index}": 1 for index in range(500)}, r"c19, … \(500 in all\)$"),
        ({}, "the row has: no column"),
    ],
)
def test_missing_columns(fields, message):
    with pytest.raises(DataError, match=message):
        fill("{z}", fields)


def test_valid_placeholders():
    assert [
        name
        for name in ("a", "a b", "é", "a.b", " a", "a:b", "a!r", "{", "", "a\0", "a\u200b")
        if is_valid_placeholder(name)
    ] == ["a", "a b", "é", "a.b"]


def test_blank_text():
    with pytest.raises(DataError, match="the prompt is empty"):
        fill_nonempty(" {a}\n", {"a": "\t"}, "prompt")


def test_the_system_turn_may_name_columns():
    fields = {"review": "r", "label": "x"}
    assert fill_system("About {review}, { label }.", fields) == "About r, x."
    assert fill_system('{"label": "…"} {{review}} {other}', fields) == '{"label": "…"} {{review}} {other}'
    with pytest.raises(DataError, match="column review has no value"):
        fill_system("{review}", {"review": None})
