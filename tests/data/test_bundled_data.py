"""The shipped data: counts, splits, labels, near-duplicates, references that pass their own tests."""

import ast
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from pipelines.scoring.sandbox import run_tests

DATA = Path(__file__).parents[2] / "data"
MIN_ROWS = {"sentiment": (300, 60, 100), "summaries": (150, 30, 60), "code": (200, 40, 80)}
MAX_SIMILARITY = 0.3
TEXT = {"sentiment": "review", "summaries": "text", "code": "description"}


def rows_of(name):
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", MIN_ROWS)
def test_counts(name):
    counts = Counter(row["split"] for row in rows_of(name))
    assert all(
        counts[split] >= min_rows
        for split, min_rows in zip(("train", "validation", "test"), MIN_ROWS[name], strict=True)
    )
    assert str(counts["train"]) in (DATA / "README.md").read_text(encoding="utf-8")


def similarities(texts):
    grams = []
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        grams.append({tuple(words[index : index + 3]) for index in range(len(words) - 2)})
    for (a, left), (b, right) in itertools.combinations(enumerate(grams), 2):
        shared = len(left & right)
        if shared:
            yield shared / len(left | right), a, b


@pytest.mark.parametrize("name", MIN_ROWS)
def test_no_near_duplicates_within_or_between_splits(name):
    texts = [row[TEXT[name]] for row in rows_of(name)]
    worst = max(similarities(texts))
    assert worst[0] < MAX_SIMILARITY, f"rows {worst[1] + 1} and {worst[2] + 1} are near-duplicates"


def test_near_duplicates_are_detected():
    texts = [
        "The kettle is loud but it boils fast and it looks good",
        "The kettle is loud but it boils fast and it looks fine",
    ]
    assert max(similarities(texts))[0] > MAX_SIMILARITY


def test_sentiment_is_balanced_and_has_hard_cases():
    rows = rows_of("sentiment")
    for split in ("train", "validation", "test"):
        labels = Counter(row["label"] for row in rows if row["split"] == split)
        assert abs(labels["positive"] - labels["negative"]) <= 2
    assert all(count >= 50 for count in Counter(row["style"] for row in rows).values())
    assert {"negation", "mixed", "irony"} <= {row["style"] for row in rows}
    assert len({row["topic"] for row in rows}) >= 12


@pytest.mark.usefixtures("compiled_sandbox")
def test_every_reference_passes_its_tests_in_the_sandbox():
    failed = []
    for line, row in enumerate(rows_of("code"), start=1):
        result = run_tests(row["code"], row["tests"])
        if result.passed != result.total or result.total < 3:
            failed.append((line, result.message))
    assert not failed


@pytest.mark.usefixtures("compiled_sandbox")
def test_a_wrong_function_fails_every_row():
    for row in rows_of("code")[:40]:
        name = re.match(r"def (\w+)", row["code"]).group(1)
        assert run_tests(f"def {name}(*values):\n    return None", row["tests"]).passed < len(row["tests"])


def without_names(code):
    """The function with its own name and those of its parameters replaced."""
    tree = ast.parse(code).body[0]
    names = {tree.name: "f", **{argument.arg: f"p{index}" for index, argument in enumerate(tree.args.args)}}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)
        elif isinstance(node, ast.arg):
            node.arg = names.get(node.arg, node.arg)
    tree.name = "f"
    return ast.unparse(tree)


def test_no_function_of_the_test_split_is_in_the_train_split():
    trained = {without_names(row["code"]) for row in rows_of("code") if row["split"] == "train"}
    assert not [
        row["code"] for row in rows_of("code") if row["split"] == "test" and without_names(row["code"]) in trained
    ]


def test_conversations_alternate_and_end_with_an_answer():
    rows = rows_of("conversations")
    assert Counter(row["split"] for row in rows) == {"train": 168, "validation": 24, "test": 48}
    assert Counter(row["topic"] for row in rows).most_common()[0][1] == 12
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and 4 <= len(roles) <= 8
        assert all(message["content"].strip() for message in row["messages"])
    texts = [" ".join(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows]
    assert max(similarities(texts))[0] < MAX_SIMILARITY
