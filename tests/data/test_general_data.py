"""The bundled guards and general text: counts, form, and nothing of the one in the other."""

from collections import Counter

import pytest

from pipelines.config.forgetting import Forgetting
from pipelines.evaluation.retention_files import check_retention_evals
from tests.data.test_bundled_data import DATA, rows_of, similarities

MOST_ALIKE = 0.3
LEAST = {
    "retention/choices": 200,
    "retention/passages": 60,
    "retention/instructions": 60,
    "general/passages": 50,
    "general/instructions": 200,
}


@pytest.mark.parametrize("name", LEAST)
def test_counts_stand_in_the_data_card(name):
    count = len(rows_of(name))
    assert count >= LEAST[name]
    card = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"| `{name}.jsonl` | {count} |" in card


def test_the_bundled_guards_are_read():
    check_retention_evals(Forgetting())


def test_right_choices_are_spread_and_no_longer_than_wrong_ones():
    items = rows_of("retention/choices")
    places = Counter(item["answer"] for item in items)
    assert set(places) == {0, 1, 2, 3} and max(places.values()) - min(places.values()) <= 4
    assert all(len(set(item["choices"])) == 4 for item in items)
    right = [len(item["choices"][item["answer"]]) for item in items]
    wrong = [len(choice) for item in items for number, choice in enumerate(item["choices"]) if number != item["answer"]]
    assert abs(sum(right) / len(right) / (sum(wrong) / len(wrong)) - 1) < 0.1


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (("retention/choices",), "question"),
        (("retention/passages", "general/passages"), "text"),
        (("retention/instructions", "general/instructions"), "instruction"),
    ],
)
def test_no_near_duplicates_within_or_between_guards_and_general_text(names, column):
    texts = [row[column] for name in names for row in rows_of(name)]
    worst = max(similarities(texts), default=(0.0,))
    assert worst[0] < MOST_ALIKE, worst
