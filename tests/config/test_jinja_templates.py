"""Jinja templates of tasks: what they print, what they refuse, and the limit on their work."""

import time

import pytest

from pipelines.config.jinja_templates import TemplateValueError, jinja_template
from pipelines.storage.strict_json import infinity

ALPACA = "{{ instruction }}{% if input %}\n{{ input }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "fields", "text"),
    [
        (ALPACA, {"instruction": "Add.", "input": "1, 2"}, "Add.\n1, 2"),
        (ALPACA, {"instruction": "Add.", "input": None}, "Add."),
        ("{{ a }} {{ b }} {{ c }}", {"a": True, "b": 1.0, "c": "é<"}, "true 1.0 é<"),
        ("{{ x | tojson }}", {"x": {"a": "<é>"}}, '{"a": "<é>"}'),
        ('{{ row["question text"] }}', {"question text": "why"}, "why"),
        ("{% if x is defined %}{{ x }}{% endif %}.", {}, "."),
        ('{{ x | default("none") }}', {}, "none"),
        ("{% for m in x %}\n{{ m.content }}\n{% endfor %}\n", {"x": [{"content": "a"}, {"content": "b"}]}, "a\nb"),
        ("Q: {{ a }}\n{% if b %}\nB: {{ b }}\n{% endif %}\n", {"a": "x", "b": "y\n"}, "Q: x\nB: y\n"),
        ("Q: {{ a }}\n{# a note #}\n{% if b %}\nB: {{ b }}\n{% endif %}", {"a": "x", "b": ""}, "Q: x"),
        ("{{ a }}\n", {"a": "x\n"}, "x\n"),
        ("{% if a %}\n{{ a }}\n{% endif %}\n.\n", {"a": "x"}, "x\n."),
        ("{% if a %}\n  {{ a }}\n  {% endif %}\nend", {"a": "x"}, "  x\nend"),
        ("{% set n = namespace(x=1) %}{% for i in range(3) %}{% set n.x = n.x * 2 %}{% endfor %}{{ n.x }}", {}, "8"),
        ("{{ 'a' ~ b ~ 1 }}{{ b + 'c' }}", {"b": "b"}, "ab1bc"),
        (
            "{{ [a, '', b] | select | join(', ') }}{{ x | map('upper') | join }}",
            {"a": "a", "b": "b", "x": "y"},
            "a, bY",
        ),
    ],
)
def test_rendered_text(template, fields, text):
    assert jinja_template(template).render(fields) == text


@pytest.mark.parametrize(
    ("template", "fields", "message"),
    [
        ("{{ x }}", {"x": [1]}, r"prints a list; write \{\{ x \| join"),
        ("{{ x }}", {"x": {"a": 1}}, r"prints an object; write .*tojson"),
        ("{{ x }}", {"x": None}, "prints a missing value"),
        ("{{ x }}", {"x": float("nan")}, "prints a missing value"),
        ("{{ x }}", {"x": infinity("Infinity")}, "is Infinity"),
        ("{{ x }}", {"x": "a\0"}, "NUL"),
        ("{{ range }}", {}, "prints no text"),
        ("{{ x.y }}", {"x": {}}, "no attribute 'y'"),
        ("{{ ''.__class__.__mro__ }}", {}, "unsafe"),
        ("{{ x.append(1) }}", {"x": []}, "unsafe"),
        ("{{ x.items | tojson }}", {"x": {}}, "fails"),
        ("{{ '{:>9}'.format(1) }}", {}, "calls format"),
        ("{{ '%9d' % 1 }}", {}, "formats with %"),
        ("{{ 1 // x }}", {"x": 0}, "fails"),
        ("{% for a in x recursive %}{{ loop(x) }}{% endfor %}", {"x": [1]}, "calls itself"),
    ],
)
def test_values_that_cannot_be_text(template, fields, message):
    with pytest.raises(TemplateValueError, match=message):
        jinja_template(template).render(fields)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro a(n) %}{% if n %}{{ a(n-1) }}{{ a(n-1) }}{% endif %}{% endmacro %}{{ a(60) }}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x.replace('b', n.x) %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x * 9 %}{% endfor %}{{ n.x | length }}",
        "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
        "{{ 'a' * 10**10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'a' | center(10**9) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{% for i in range(99999) %}{{ range(99999) | sort | length }}{% endfor %}",
        "{% for i in range(99999) %}{{ x | join(x) | length }}{% endfor %}",
    ],
)
def test_work_is_limited(template):
    start = time.monotonic()
    with pytest.raises(TemplateValueError):
        jinja_template(template).render({"x": "a" * 1000})
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n\nb {% endif %}", "line 3 of the template: encountered unknown tag 'endif'"),
        ("{{ a b }}", "line 1 of the template: expected token 'end of print statement', got 'b'"),
        ("{{ ", "line 1 of the template"),
        ("x\n{% include 'other' %}", "line 2 of the template: a template cannot read others"),
        ("{{ 'x' | format(1) }}", "No filter named 'format'|no filter named 'format'"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "cannot be compiled"),
    ],
)
def test_invalid_templates(template, message):
    with pytest.raises(ValueError, match=message):
        jinja_template(template)


def test_columns():
    template = jinja_template(
        "{{ b }}{% if a is defined %}{{ a }}{% endif %}{% for c in d %}{{ c }}{% endfor %}{{ e | default('') }}"
        "{{ range(3) | list | tojson }}{{ row.z }}{% set f = 1 %}{{ f }}{% if g %}{% endif %}"
    )
    assert set(template.columns) == {"b", "d", "g"}
    assert set(template.optional_columns) == {"a", "e"}
    assert template.printed_columns == ("b",) or set(template.printed_columns) == {"a", "b"}
