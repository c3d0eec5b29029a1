"""Error messages of configs and overrides."""

from __future__ import annotations

import pytest

from tests.bad_configs import GOOD
from tests.config.mistakes import MISTAKES
from tests.config.problems import Write, problems


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_at_its_line(write: Write, name: str) -> None:
    content, line, fragment = MISTAKES[name]
    path = write(content)
    reported = problems(path)
    assert [problem for problem in reported if fragment in problem.message and problem.line == line], reported
    assert all(problem.file == str(path) for problem in reported)
    assert all(str(problem).isprintable() for problem in reported)
    assert len(reported) <= 2, reported  # consequential errors would hide the mistake


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = GOOD.replace("epochs: 2", "epochs: 0").replace("prompt:", "promt:").replace("r: 16", "rr: 16")
    reported = problems(write(text), "trainer.batch_sze=8", "generation.top_k=0", "nonsense")
    assert [problem.line for problem in reported] == [5, 9, 11, None, None, None]
    assert {str(problem) for problem in reported[3:]} == {
        "override nonsense: write key.path=value, as in trainer.epochs=1",
        "override generation.top_k=0: generation.top_k must be at least 1, found 0",
        "override trainer.batch_sze=8: trainer.batch_sze: unknown key; did you mean batch_size?",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.lerning_rate=1", "trainer.lerning_rate: unknown key; did you mean learning_rate?"),
        ("trainer.learning_rate=fast", "trainer.learning_rate: expected a number, found the text 'fast'"),
        ("trainer.epochs=", "trainer.epochs: expected a whole number, found nothing"),
        ("trainer.epochs.more=1", "trainer.epochs is 2, not a section"),
        ("trainer..epochs=1", "write key.path=value, as in trainer.epochs=1"),
        ("=1", "write key.path=value, as in trainer.epochs=1"),
        ("adapter={type: lora", "not valid YAML"),
        ("adapter={type: lora, type: ia3}", "type: duplicate key"),
        ("pipeline.seed=&a [*a]", "an alias (*) refers to a value that contains it"),
        ("pipeline.tasks.sentiment.prompt={review}", 'in quotes: "{review}"'),
    ],
)
def test_an_invalid_override_is_reported_under_its_name(write: Write, override: str, message: str) -> None:
    (problem,) = problems(write(GOOD), override)
    assert (problem.file, problem.line) == (f"override {override}", None)
    assert message in problem.message
