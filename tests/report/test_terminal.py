"""The summary in the terminal."""

import io
import re

from rich.console import Console

from pipelines.report import analyse, formatting
from pipelines.report.terminal import print_summary
from tests.report.run_folder import line, write_run


def test_control_characters_are_printed_as_text(tmp_path):
    answer = "[red]\x1b[31m\x07\u202e yes\nno"
    completions = [[line("mood", n, "p", ["a", "b"][n % 2], answer) for n in range(2)]] * 2
    out = io.StringIO()
    print_summary(
        analyse(write_run(tmp_path / "r", {"mood": "exact_match"}, *completions)), Console(file=out, width=200)
    )
    text = out.getvalue()
    assert "[red]␛[31m␇⟨U+202E⟩ yes no" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e"}


def test_the_terminal_table_has_every_task(demo_analysis):
    out = io.StringIO()
    print_summary(demo_analysis, Console(file=out, width=140))
    for name, task in demo_analysis.tasks.items():
        assert re.search(
            rf"^{name} .*{re.escape(formatting.number(task.comparison.tuned, task.unit))} .*{task.verdict}",
            out.getvalue(),
            re.MULTILINE,
        )
