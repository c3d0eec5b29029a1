"""Sample prompts of the report and of --raw."""

import json

import pytest

from pipelines.data.sample_prompts import load_sample_prompts
from pipelines.errors import DataError


def write(tmp_path, name, *rows):
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_sample_prompts(tmp_path):
    path = write(tmp_path, "p.jsonl", {"prompt": "Why?"}, {"prompt": "How?", "title": "b", "max_new_tokens": 3})
    samples = load_sample_prompts(path, system="Be brief.")
    assert [(sample.prompt, sample.title, sample.max_new_tokens) for sample in samples] == [
        ("Why?", None, None),
        ("How?", "b", 3),
    ]
    assert all(sample.task == "" and sample.completion is None for sample in samples)
    assert samples[1].source_location == f"{path}:2" and samples[1].system == "Be brief."


def test_numbers_in_csv(tmp_path):
    path = write(tmp_path, "p.csv", "prompt,title,max_new_tokens", "Why?,,12", "How?,b,")
    assert [(sample.title, sample.max_new_tokens) for sample in load_sample_prompts(path)] == [(None, 12), ("b", None)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        *(
            ({"prompt": "Why?", "max_new_tokens": bound}, "max_new_tokens is .*; write a positive integer")
            for bound in ("12", 0, -3, True, 2.5, [3], 1e300)
        ),
        ({"prompt": "Why?", "title": 7}, "title is 7; write a text"),
        ({"prompt": "Why?", "titel": "x"}, "unknown column 'titel'"),
        ({"prompt": " \n"}, "needs a text in `prompt`"),
        ({"prompt": ["Why?"]}, "needs a text in `prompt`"),
        ({"prompt": "a\0b"}, "contains a NUL character"),
        ({}, "needs a text in `prompt`; the row has: no column"),
        ('{"prompt": "\\ud800"}', "unpaired surrogate"),
    ],
)
def test_invalid_sample_prompts(tmp_path, row, message):
    with pytest.raises(DataError, match=f"p.jsonl:2: .*{message}"):
        load_sample_prompts(write(tmp_path, "p.jsonl", {"prompt": "Why?"}, row))


def test_all_invalid_rows_are_reported(tmp_path):
    with pytest.raises(DataError) as caught:
        load_sample_prompts(
            write(
                tmp_path,
                "p.jsonl",
                {"prompt": ""},
                {"prompt": "x"},
                {"prompt": "x", "title": []},
                {"prompt": "x", "more": 1},
            )
        )
    assert [problem.line for problem in caught.value.problems] == [1, 3, 4]
