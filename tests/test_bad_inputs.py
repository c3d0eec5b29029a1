"""Every bad input: one line per error, the exit code, no partial files; docs/bad_inputs.md is up to date."""

import pytest

from tests.bad_input_cases import CASES
from tests.bad_inputs import PAGE, page, run_case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_one_line_per_error_and_an_exit_code(case):
    outcome = run_case(case)
    assert outcome.exception is None
    assert outcome.exit_code == (1 if case.fault or case.environment else 2)
    errors = [line for line in outcome.lines if line.startswith("error: ")]
    notes = outcome.lines[len(errors) :]  # on what was detected in a data file
    assert errors and outcome.lines[: len(errors)] == errors and all(len(line) < 700 for line in outcome.lines)
    assert all(line.startswith("note: rows.") for line in notes)
    # Python writes .pyc files for the module of a custom metric.
    assert not [name for name in outcome.new_files if not name.endswith((".lock", "manifest.json", ".pyc"))]


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.bad_inputs"
