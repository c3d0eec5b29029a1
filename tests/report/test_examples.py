"""`alfine examples`: selection and order of the examples; no text moves the cursor."""

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from tests.report.run_folder import line, write_run


@pytest.fixture
def run(tmp_path):
    references = ["yes", "yes", "no", "no", "yes"]
    base = ["yes", "no", "no", "yes\x1b[2J\u202e", "long " * 2000]
    tuned = ["no", "yes", "no", "yes", "no"]
    completions = [
        [
            line("mood", n, f"prompt {n}", ref, answer)
            for n, (ref, answer) in enumerate(zip(references, answers, strict=True))
        ]
        for answers in (base, tuned)
    ]
    return write_run(tmp_path / "r", {"mood": "exact_match"}, *completions)


def show(run, *arguments):
    return CliRunner().invoke(main, ["examples", str(run), *arguments])


def test_the_largest_regression_comes_first(run):
    output = show(run).output
    rows = [int(part.split(":")[0]) for part in output.split("mood, row ")[1:]]
    assert rows[0] == 0 and rows[-1] == 1 and sorted(rows) == [0, 1, 2, 3, 4]


def test_the_options_select_examples(run):
    assert show(run, "--worse").output.count("mood, row") == 1
    assert show(run, "--better", "--task", "mood").output.count("mood, row") == 1
    result = show(run, "--task", "nope")
    assert (result.exit_code, "it has mood" in result.output) == (2, True)


def test_no_text_moves_the_cursor(run):
    output = show(run).output
    assert "\x1b" not in output and "\u202e" not in output
    assert len(output) < 20_000


def test_a_missing_run_is_an_error(tmp_path):
    assert show(tmp_path).exit_code == 2
