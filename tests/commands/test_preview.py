"""`alfine preview`: the learning rate schedule as text."""

import io

import pytest
from rich.console import Console

from pipelines.commands.preview import ASCII_BARS, print_schedule, sparkline


def test_the_learning_rate_schedule():
    console = Console(file=io.StringIO(), width=80)
    scheduler = {"decay": "linear", "warmup_fraction": 0.2, "reduce_on_plateau": 2}
    print_schedule(
        {"batch_size": 10, "epochs": 1, "learning_rate": 0.01, "learning_rate_scheduler": scheduler}, 100, console
    )
    assert console.file.getvalue().splitlines() == [
        "10 steps, 10 per epoch, evaluated every 10",
        "learning rate  ▁▅██▇▆▅▄▃▂  linear",
        "first 0, peak 0.01 at step 3, last 0.00125",
        "multiplied by 0.1 on each plateau, at most 2 times",
    ]


@pytest.mark.parametrize(("values", "bars"), [([1.0], "█"), ([0.0, 1.0], "▁█"), ([0.0], "▁"), ([1.0] * 500, "█" * 40)])
def test_sparkline(values, bars):
    assert sparkline(values) == bars


def test_a_sparkline_in_ascii():
    assert sparkline([0.0, 0.5, 1.0], ASCII_BARS) == "047"


def test_a_sparkline_shows_the_first_and_the_last_value():
    assert sparkline([0.0] * 99 + [1.0]).endswith("▁█") and sparkline([1.0] + [0.0] * 99).startswith("█▁")
