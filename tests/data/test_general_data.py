"""The bundled retention evals and general text: counts, format, no overlap."""

from collections import Counter

import pytest

from pipelines.config.forgetting import Forgetting
from pipelines.evaluation.retention import check_retention_evals
from tests.data.test_bundled_data import DATA, MAX_SIMILARITY, rows_of, similarities

MIN_ROWS = {
    "retention/choices": 200,
    "retention/passages": 60,
    "retention/instructions": 60,
    "general/passages": 50,
    "general/instructions": 200,
}


@pytest.mark.parametrize("name", MIN_ROWS)
def test_counts_match_the_data_card(name):
    count = len(rows_of(name))
    assert count >= MIN_ROWS[name]
    card = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"| `{name}.jsonl` | {count} |" in card


def test_bundled_retention_evals_are_valid():
    check_retention_evals(Forgetting())


def test_answers_have_no_position_or_length_bias():
    items = rows_of("retention/choices")
    positions = Counter(item["answer"] for item in items)
    assert set(positions) == {0, 1, 2, 3} and max(positions.values()) - min(positions.values()) <= 4
    assert all(len(set(item["choices"])) == 4 for item in items)
    right = [len(item["choices"][item["answer"]]) for item in items]
    wrong = [len(choice) for item in items for index, choice in enumerate(item["choices"]) if index != item["answer"]]
    assert abs(sum(right) / len(right) / (sum(wrong) / len(wrong)) - 1) < 0.1


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (("retention/choices",), "question"),
        (("retention/passages", "general/passages"), "text"),
        (("retention/instructions", "general/instructions"), "instruction"),
    ],
)
def test_no_near_duplicates_within_or_between_files(names, column):
    texts = [row[column] for name in names for row in rows_of(name)]
    worst = max(similarities(texts), default=(0.0,))
    assert worst[0] < MAX_SIMILARITY, worst
