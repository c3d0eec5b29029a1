"""Files of rows: on this disk, on the Hub, unusable."""

from unittest import mock

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from pipelines.errors import DataError
from pipelines.evaluation.data_files import resolve_data_file


def test_file_on_the_hub_is_downloaded_if_it_is_not_cached(tmp_path, monkeypatch):
    calls = []

    def download(*where, repo_type, local_files_only=False):
        calls.append((local_files_only, *where, repo_type))
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        return str(tmp_path / "test.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert resolve_data_file("hub:some/benchmark/easy/test.jsonl") == tmp_path / "test.jsonl"
    where = ("some/benchmark", "easy/test.jsonl", "dataset")
    assert calls == [(True, *where), (False, *where)]


@pytest.mark.parametrize("data", ["hub:some", "hub:some/benchmark", "hub:"])
def test_name_that_is_no_file_of_the_hub(data):
    with pytest.raises(DataError, match="write hub:OWNER/NAME/FILE"):
        resolve_data_file(data)


def test_unreachable_hub_is_one_line(monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", mock.Mock(side_effect=LocalEntryNotFoundError("no connection\nmore"))
    )
    message = r"hub:a/b/c.jsonl: could not be downloaded from the Hub \(no connection\); download the file"
    with pytest.raises(DataError, match=message):
        resolve_data_file("hub:a/b/c.jsonl")
