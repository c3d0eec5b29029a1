"""Templates of prompts and completions."""

from __future__ import annotations

import pytest

from pipelines.config.templates import check_template


@pytest.mark.parametrize("template", ["", "plain", "{a}", "{a b} {{x}} {c.d}", "{{{a}}}", "}}{{", "{Überschrift}"])
def test_good_templates(template: str) -> None:
    check_template(template)


@pytest.mark.parametrize("template", ["{", "}", "{a", "a}", "{{a}", "{a}}", "{ a}", "{a{b}}", "{\n}", "{a:}}", "{{}{"])
def test_bad_templates(template: str) -> None:
    with pytest.raises(ValueError, match='write "{column}" for a column'):
        check_template(template)
