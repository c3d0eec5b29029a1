"""Every bad input of the table: one line for each mistake, the exit code, nothing half-written, the page up to date."""

import pytest

from tests.bad_inputs import CASES, PAGE, outcome, page


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_one_line_and_an_exit_code(case):
    done = outcome(case)
    assert done.exception is None
    assert done.exit_code == (1 if case.fault or case.machine else 2)
    assert done.lines and all(line.startswith("error: ") and len(line) < 700 for line in done.lines)
    assert not [
        name for name in done.left if not name.endswith((".lock", "manifest.json", ".pyc"))
    ]  # .pyc: Python's, of a metric


def test_the_page_shows_what_is_printed():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: python -m tests.bad_inputs"
