"""Multiple choice: the rows that are read, the score of an answer."""

import json

import numpy as np
import pytest
import torch

from pipelines.errors import DataError
from pipelines.evaluation.retention import retention_records, score_retention_eval
from pipelines.evaluation.retention_evals.multiple_choice import read_multiple_choice
from tests.evaluation.retention_evals.files import ROWS, load, prepare


def test_answer_has_the_highest_log_likelihood_per_character(files):
    loaded = load(files / "m")
    prepared = prepare(loaded)["multiple_choice"]
    scores = score_retention_eval(loaded, prepared, None)
    for item, score in zip(ROWS["multiple_choice"], scores, strict=True):
        log_likelihoods = []
        for choice in item["choices"]:
            question, sequence = (
                loaded.prompt_format.encode_text(f"Question: {item['question']}\nAnswer:{end}")
                for end in ("", " " + choice)
            )
            log_probs = loaded.model(input_ids=torch.tensor([sequence])).logits[0].log_softmax(-1)
            total = sum(float(log_probs[n - 1, sequence[n]].detach()) for n in range(len(question), len(sequence)))
            log_likelihoods.append(total / len(choice))
        assert score == (100.0 if int(np.argmax(log_likelihoods)) == item["answer"] else 0.0)


def test_records_hold_the_accuracy_of_a_random_guess(files):
    prepared = prepare(load(files / "m"))["multiple_choice"]
    records = retention_records(prepared, [0.0] * 9)
    assert {record.chance_accuracy for record in records} == {100 / 3} and records[8].item == 9


def test_rows_are_read_in_their_own_form(files):
    assert read_multiple_choice(files / "multiple_choice.jsonl")[4].answer == 1


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question_stem": "a", "choices": {"text": ["b", "c"], "label": ["1", "2"]}, "answerKey": "2"},
        {"goal": "a", "sol1": "b", "sol2": "c", "label": 1},
        {"ctx": "a", "endings": ["b", "c"], "label": "1", "ind": 4},
    ],
    ids=["arc", "openbookqa", "piqa", "hellaswag"],
)
def test_public_benchmark_is_read_as_published(files, row):
    (files / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = read_multiple_choice(files / "rows.jsonl")
    assert (item.question, item.choices, item.answer) == ("a", ["b", "c"], 1)


def test_benchmark_row_without_its_answer_is_named(files):
    (files / "rows.jsonl").write_text(
        '{"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": ""}\n'
    )
    with pytest.raises(DataError, match="rows.jsonl:1: answer is the index"):
        read_multiple_choice(files / "rows.jsonl")
