"""Whether the code of a completion passes the row's unit tests in the sandbox."""

from __future__ import annotations

from pipelines.errors import DataError
from pipelines.scoring.code_extraction import extract_code
from pipelines.scoring.metric import CompletionFields, Metric, Score, Unit, register, row_location
from pipelines.scoring.python_tests import row_tests
from pipelines.scoring.sandbox import run_tests


def _score(record: CompletionFields) -> Score:
    try:
        tests = row_tests(record["fields"])
    except DataError as error:
        raise DataError(f"{row_location(record)}: {error}") from None
    result = run_tests(extract_code(record["completion"]), tests)
    if result.unsupported:
        return Score(None, f"not supported by the sandbox: {result.message}")
    if result.passed == result.total:
        return Score(100.0)
    return Score(0.0, f"{result.passed} of {result.total} tests pass; {result.message}")


register(
    Metric(name="unit_tests", title="tests passed", unit=Unit.PERCENT, score=_score, binary=True, check_row=row_tests)
)
