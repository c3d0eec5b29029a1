"""Samples of rows: counts, uniformity, the longest rows, every file format."""

import csv
import gzip
import json
from collections import Counter

import pytest

from pipelines.data.readers import read_rows
from pipelines.errors import DataError
from pipelines.planning.row_sample import NUM_LONGEST, sample_rows


def write_rows(path, count):
    rows = [{"text": f"row {index}", "n": index} for index in range(count)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "n"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv"])
def test_a_small_file_is_sampled_completely(tmp_path, name):
    path = write_rows(tmp_path / name, 30)
    sample = sample_rows(path, 100, seed=0)
    assert sample.count == 30 and sample.is_complete
    assert [row for _, row in sample.rows] == read_rows(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_every_row_is_equally_likely(tmp_path, name):
    path = write_rows(tmp_path / name, 50)
    counts = Counter(int(row["n"]) for seed in range(400) for _, row in sample_rows(path, 10, seed).rows)
    assert set(counts) == set(range(50))
    # 80 expected, standard deviation 8: five of them.
    assert all(40 < count < 120 for count in counts.values())


def test_the_longest_rows_are_kept(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", 300)
    lines = path.read_text().splitlines()
    lines[7] = json.dumps({"text": "long " * 500, "n": 7})
    path.write_text("\n\n".join(lines))  # blank lines do not count
    sample = sample_rows(path, 5, seed=1)
    assert sample.count == 300 and not sample.is_complete
    assert len(sample.longest) == NUM_LONGEST
    assert 7 in {row["n"] for _, row in sample.longest}


@pytest.mark.parametrize(("text", "message"), [("", "has no rows"), ("{}\n[1]\n", "expected a JSON object per line")])
def test_files_without_rows_are_refused(tmp_path, text, message):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        sample_rows(tmp_path / "rows.jsonl", 10, seed=0)
