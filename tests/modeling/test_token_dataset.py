"""The token table on disk, read through memory mapping."""

import numpy as np
import pytest

from pipelines.data import tokenize_rows
from pipelines.data.examples import Example
from pipelines.data.tokenize_rows import TokenizedExample, open_split, write_splits
from pipelines.modeling.token_dataset import TokenDataset

SPANS = [[(1, 3)], [(2, 3), (4, 6)], [(1, 2), (2, 4), (5, 7)], [(3, 7)], [(1, 7)]]


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize_rows, "TOKENIZE_BATCH_SIZE", 2)  # several record batches
    rows = []
    for index, spans in enumerate(SPANS):
        example = Example(
            task=f"task{index % 2}",
            split="train",
            row_number=index + 1,
            file="a.jsonl",
            system=None,
            prompt="p",
            completion="c",
            fields={},
        )
        rows.append(TokenizedExample([*range(index, 8 + index)], spans, example))
    write_splits(rows, tmp_path)
    return tmp_path


def test_tokens_and_spans_are_read_back(dataset):
    data = TokenDataset.from_table(open_split(dataset, "train"))
    assert len(data) == 5 and data.tasks == ["task0", "task1", "task0", "task1", "task0"]
    assert [list(ids) for ids in data.sequences.input_ids] == [[*range(index, 8 + index)] for index in range(5)]
    assert data.sequences.input_ids[0].dtype == np.int32
    assert list(data.sequences.supervised_spans) == SPANS
    assert data.sequences.supervised_lengths == [2, 3, 5, 4, 6]
    assert data.sequences.select([4, 1]).supervised_spans == [SPANS[4], SPANS[1]]
    assert data.sequences[1:3].supervised_spans == SPANS[1:3]
    assert data.source_location(3) == "a.jsonl:4"


def test_spans_in_the_table(dataset):
    assert open_split(dataset, "train")["supervised_spans"].to_pylist() == [
        [list(span) for span in spans] for spans in SPANS
    ]
