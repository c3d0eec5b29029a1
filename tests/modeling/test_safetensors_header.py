"""Errors in safetensors files are detected from their headers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pipelines.errors import ModelError
from pipelines.modeling.safetensors_header import INDEX, TensorInfo, read_header, read_headers


def save(path, **shapes):
    save_file({name: np.zeros(shape, dtype=np.float16) for name, shape in shapes.items()}, path)


def test_names_dtypes_and_shapes(tmp_path):
    save(tmp_path / "model.safetensors", a=(2, 3), b=(5,))
    assert read_headers(tmp_path) == {"a": TensorInfo("F16", (2, 3)), "b": TensorInfo("F16", (5,))}


@pytest.mark.parametrize("left", [3, 20, 100, -1])
def test_a_truncated_file(tmp_path, left):
    save(tmp_path / "w.safetensors", a=(20, 30))
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[:left])
    with pytest.raises(
        ModelError, match=r"w\.safetensors is (truncated: .* of at least .* bytes|not a safetensors file)"
    ):
        read_header(tmp_path / "w.safetensors")


def test_a_git_lfs_pointer(tmp_path):
    (tmp_path / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(ModelError, match="Git LFS pointer.*git lfs pull"):
        read_header(tmp_path / "w.safetensors")


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_model_errors_only(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("f") / "w.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except ModelError:
        return


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
    )
)
def test_arbitrary_headers_raise_model_errors_only(tmp_path_factory, header):
    text = json.dumps(header).encode()
    path = tmp_path_factory.mktemp("f") / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    try:
        read_header(path)
    except ModelError:
        return


@pytest.fixture
def sharded(tmp_path):
    save(tmp_path / "model-00001-of-00002.safetensors", a=(2,))
    save(tmp_path / "model-00002-of-00002.safetensors", b=(3,), c=(4,))
    placed = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": placed}))
    return tmp_path


def test_shards(sharded):
    assert set(read_headers(sharded)) == {"a", "b", "c"}


def test_a_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors, which is in .*index\.json"):
        read_headers(sharded)


def test_a_shard_without_a_tensor(sharded):
    save(sharded / "model-00002-of-00002.safetensors", b=(3,))
    with pytest.raises(ModelError, match="lacks c, which"):
        read_headers(sharded)


def test_shards_without_an_index(sharded):
    (sharded / INDEX).unlink()
    with pytest.raises(ModelError, match="has model-00001.*but neither model.safetensors nor"):
        read_headers(sharded)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../x"}}',
    ],
)
def test_an_invalid_index(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(ModelError):
        read_headers(sharded)
