"""A valid config, and functions that return it with one change, for tests of error messages."""

from __future__ import annotations

from collections.abc import Callable

GOOD = """\
pipeline:
  tasks:
    sentiment:
      data: data/sentiment.jsonl
      prompt: "Is this review positive or negative?\\n{review}"
      completion: "{label}"
      metric: exact_match
base_model: smollm2-135m-instruct
adapter: {type: lora, r: 16}
trainer:
  epochs: 2
  learning_rate: 2e-4
generation:
  max_new_tokens: 8
"""


def with_line(old: str, new: str) -> str:
    """GOOD with `old`, which occurs once, replaced by `new`."""
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def instead_of(old: str) -> Callable[[str], str]:
    return lambda new: with_line(old, new)


data = instead_of("data/sentiment.jsonl")  # line 4
prompt = instead_of("{review}")  # line 5
completion = instead_of('"{label}"')  # line 6
base_model = instead_of("smollm2-135m-instruct")  # line 8
adapter = instead_of("{type: lora, r: 16}")  # line 9
rank = instead_of("r: 16")
trainer = instead_of("epochs: 2")  # line 11
rate = instead_of("2e-4")  # line 12
generation = instead_of("max_new_tokens: 8")  # line 14


def pipeline(line: str) -> str:
    """GOOD with an additional line in the section `pipeline`: line 2."""
    return with_line("  tasks:", f"  {line}\n  tasks:")


def task(line: str) -> str:
    """GOOD with an additional line in its task: line 8."""
    return with_line("metric: exact_match", f"metric: exact_match\n      {line}")


def scheduler(keys: str) -> str:
    """GOOD with a section `learning_rate_scheduler` with these keys: line 11."""
    return trainer(f"learning_rate_scheduler: {{{keys}}}")


def section(text: str) -> str:
    """GOOD with an additional section at its end: line 15."""
    return GOOD + text
