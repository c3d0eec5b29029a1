"""The bundled guards and general text: counts, form, and nothing of the one in the other."""

from collections import Counter

import pytest

from pipelines.forgetting.files import check_guards
from pipelines.forgetting_keys import Forgetting
from tests.test_data import DATA, rows_of, similarities

MOST_ALIKE = 0.3
LEAST = {"guards/choices": 200, "guards/passages": 60, "guards/instructions": 60, "general/passages": 50, "general/instructions": 200}


@pytest.mark.parametrize("name", LEAST)
def test_counts_stand_in_the_data_card(name):
    count = len(rows_of(name))
    assert count >= LEAST[name]
    card = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"| `{name}.jsonl` | {count} |" in card


def test_the_bundled_guards_are_read():
    check_guards(Forgetting())


def test_right_choices_are_spread_and_no_longer_than_wrong_ones():
    items = rows_of("guards/choices")
    places = Counter(item["answer"] for item in items)
    assert set(places) == {0, 1, 2, 3} and max(places.values()) - min(places.values()) <= 4
    assert all(len(set(item["choices"])) == 4 for item in items)
    right = [len(item["choices"][item["answer"]]) for item in items]
    wrong = [len(choice) for item in items for number, choice in enumerate(item["choices"]) if number != item["answer"]]
    assert abs(sum(right) / len(right) / (sum(wrong) / len(wrong)) - 1) < 0.1


@pytest.mark.parametrize(
    ("names", "column"),
    [(("guards/choices",), "question"), (("guards/passages", "general/passages"), "text"),
     (("guards/instructions", "general/instructions"), "instruction")],
)  # fmt: skip
def test_no_near_duplicates_within_or_between_guards_and_general_text(names, column):
    texts = [row[column] for name in names for row in rows_of(name)]
    worst = max(similarities(texts), default=(0.0,))
    assert worst[0] < MOST_ALIKE, worst
