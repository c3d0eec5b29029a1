"""JSON that every reader accepts; JSON with two meanings is an error."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.storage.strict_json import NonTextValue, StrictJsonError, dump, parse

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
ANY = st.recursive(
    st.none()
    | st.integers()
    | st.floats()
    | st.text(st.characters(categories=None))
    | st.builds(NonTextValue, st.text(), st.just("")),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(st.characters(categories=None)), children, max_size=3)
    ),
    max_leaves=8,
)


def strictly(text):
    return json.loads(text.encode(), parse_constant=pytest.fail)


@given(PLAIN)
def test_a_value_survives_dump_and_parse(value):
    assert parse(dump(value)) == strictly(dump(value)) == value


@given(ANY, st.sampled_from([None, 1]))
def test_dump_writes_strict_json(value, indent):
    strictly(dump(value, indent))


def test_nan_and_infinity_become_strings():
    written = dump({"loss": float("nan"), "all": [float("inf"), -math.inf, 1.5]})
    assert strictly(written) == {"loss": "NaN", "all": ["Infinity", "-Infinity", 1.5]}
    assert math.isnan(float(json.loads(written)["loss"]))


def test_constants_of_python_are_parsed():
    assert parse("[NaN]") == [None]
    assert [value.text for value in parse("[Infinity, -Infinity]")] == ["Infinity", "-Infinity"]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '["\\ud800"]',
        '"\\uDFFF"',
        "1e400",
        "1" * 4400,
        "[" * 200 + "]" * 200,
        "[" * 10**5,
        '{"a":' * 150 + "1" + "}" * 150,
    ],
)
def test_invalid(text):
    with pytest.raises(StrictJsonError):
        parse(text)


def test_values_at_the_limits():
    assert parse("1" * 4300) == int("1" * 4300)
    assert parse("[" * 100 + "]" * 100) and parse("1e308") == 1e308 and parse("-0.0") == 0
    assert len(parse("[" + ",".join(["[]"] * 500) + "]")) == 500
