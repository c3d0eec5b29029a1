"""Randomly edited rows, retention evals and model folders are read or end in an error of alfine."""

import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config.job import load_job
from pipelines.data.examples import load_examples
from pipelines.data.readers import SUFFIXES, read_notes, read_rows
from pipelines.data.sources import open_source
from pipelines.errors import AlfineError, DataError, ModelError
from pipelines.evaluation.retention import check_retention_evals
from pipelines.modeling.base_models import ensure_base_model, load_tokenizer
from pipelines.modeling.content_hash import fingerprint
from pipelines.storage.strict_json import dump
from tests.data.test_file_formats import COMPRESSED, FORMATS
from tests.fuzzing import FUZZ, assert_one_line_each, edit_bytes
from tests.tiny import make_model

ROWS = {
    "rows.jsonl": b'{"q": "is 1 odd", "a": "yes", "n": [1, null], "split": "train"}\n{"q": "is 2 odd", "a": "no"}\n',
    "rows.csv": b'q,a,split\n"is 1, odd",yes,train\nis 2 odd,no,test\n',
}


@FUZZ
@given(
    st.sampled_from(sorted(ROWS)),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9), st.binary(max_size=9)), max_size=4),
)
def test_rows_with_edited_bytes_are_read_or_refused(tmp_path, name, edits):
    raw = edit_bytes(ROWS[name] * 3, edits)
    path = tmp_path / name
    path.write_bytes(raw)
    try:
        assert all(isinstance(row, dict) for row in read_rows(path))
    except DataError as error:
        assert_one_line_each(error, path)
    config = {
        "base_model": "x/y",
        "pipeline": {
            "tasks": {"t": {"data": str(path), "prompt": "{q}", "completion": "{a}", "metric": "exact_match"}}
        },
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    job = load_job(tmp_path / "job.yaml")
    try:
        assert list(load_examples(job.pipeline))
    except DataError as error:
        assert_one_line_each(error, path)


@FUZZ
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(["", *COMPRESSED]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 99), st.binary(max_size=9)), max_size=3),
    st.sampled_from([None, *sorted(FORMATS)]),
)
def test_damaged_and_misnamed_files_are_read_or_refused(tmp_path, name, compression, edits, other_name):
    content = FORMATS[name] if isinstance(FORMATS[name], bytes) else FORMATS[name].encode()
    path = tmp_path / f"{other_name or name}.{compression}".rstrip(".")
    path.write_bytes(edit_bytes(COMPRESSED.get(compression, bytes)(content), edits))
    for read in (read_rows, read_notes):
        try:
            read(path)
        except DataError as error:
            assert_one_line_each(error, path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None)),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(st.characters(categories=None), max_size=3), children, max_size=3)
    ),
    max_leaves=5,
)


@FUZZ
@given(
    st.lists(
        st.fixed_dictionaries({"q": JSON | st.just("q"), "other": JSON, "a": st.just("yes")}), min_size=4, max_size=6
    ),
    st.booleans(),
)
def test_rows_of_any_values_are_refused_or_become_strict_json(tmp_path, rows, escaped):
    """json.dumps writes NaN, unpaired surrogates (as escapes) and integers of any size."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows), encoding="utf-8", errors="surrogatepass"
    )
    config = {
        "base_model": "x/y",
        "pipeline": {
            "tasks": {"t": {"data": str(path), "prompt": "{q}", "completion": "{a}", "metric": "exact_match"}}
        },
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    try:
        examples = list(load_examples(load_job(tmp_path / "job.yaml").pipeline))
    except DataError as error:
        assert_one_line_each(error, path)
        return
    assert len(examples) == len(rows)
    for example in examples:
        example.prompt.encode()
        json.loads(dump(example.fields).encode(), parse_constant=pytest.fail)


@FUZZ
@given(st.binary(max_size=60), st.sampled_from(["multiple_choice", "text_nll", "kl"]))
def test_retention_evals_of_any_bytes_are_read_or_refused(tmp_path, raw, kind):
    path = tmp_path / "eval.jsonl"
    path.write_bytes(raw)
    evals = {"g": {"kind": kind, "data": str(path)}}
    config = {
        "base_model": "x/y",
        "pipeline": {
            "tasks": {"t": {"data": "d.jsonl", "prompt": "{q}", "completion": "{a}", "metric": "exact_match"}},
            "forgetting": {"strategy": "none", "evals": evals},
        },
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    try:
        check_retention_evals(load_job(tmp_path / "job.yaml").pipeline.forgetting)
    except AlfineError as error:
        assert_one_line_each(error, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "m")


@settings(FUZZ, max_examples=60)
@given(
    st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json"]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 30), st.binary(max_size=8)), min_size=1, max_size=3),
)
def test_a_model_folder_with_edited_bytes_is_read_or_refused(tmp_path, folder, name, edits):
    edited = tmp_path / "edited"
    shutil.rmtree(edited, ignore_errors=True)
    shutil.copytree(folder, edited)
    (edited / name).write_bytes(edit_bytes((edited / name).read_bytes(), edits))
    try:
        model_folder = ensure_base_model(str(edited))
        fingerprint(model_folder)
        load_tokenizer(model_folder)
    except ModelError as error:
        assert_one_line_each(error, name)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".jsonl.gz"])
def test_pipes_are_refused_at_once(tmp_path, suffix):
    pipe = tmp_path / f"rows{suffix}"
    os.mkfifo(pipe)
    for read in (read_rows, read_notes, lambda path: open_source(str(path))):
        with pytest.raises(DataError, match="is not a file"):
            read(pipe)


@pytest.mark.parametrize(
    "text", ["**.jsonl", "x" * 300 + ".jsonl", "x" * 300 + "*", "a/" * 3000 + "x.jsonl", "a\0*", "["]
)
def test_paths_that_no_file_can_have_are_refused(text):
    with pytest.raises(DataError):
        open_source(text)


def test_links_that_form_a_circle(tmp_path):
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(DataError):
        open_source(str(tmp_path / "loop.jsonl"))
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "itself").symlink_to(tmp_path)
    assert [file.path.name for file in open_source(str(tmp_path)).files] == ["rows.jsonl"]
