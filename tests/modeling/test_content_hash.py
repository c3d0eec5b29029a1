"""The fingerprint of a model folder covers all bytes that affect the model; hashes are cached."""

import os

import pytest

from pipelines.modeling import content_hash
from pipelines.modeling.content_hash import cached_file_sha256, fingerprint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content_hash, "SETTLED_SECONDS", -1)  # a test's files are never old
    model_folder = tmp_path / "model"
    model_folder.mkdir()
    (model_folder / "config.json").write_text("{}")
    (model_folder / "model.safetensors").write_bytes(bytes(3_000_000))
    return model_folder


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("position", [0, 1_500_000, 2_999_999])
def test_every_byte_of_the_weights_changes_the_fingerprint(folder, position):
    first = fingerprint(folder)
    flip(folder / "model.safetensors", position)
    assert fingerprint(folder) != first


def test_an_edit_that_restores_the_modification_time_changes_the_fingerprint(folder):
    weights = folder / "model.safetensors"
    first, stat = fingerprint(folder), weights.stat()
    flip(weights, 2_000_000)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert weights.stat().st_mtime_ns == stat.st_mtime_ns
    assert fingerprint(folder) != first


def test_another_file_of_the_same_name_changes_the_fingerprint(folder, tmp_path):
    weights = folder / "model.safetensors"
    first, stat = fingerprint(folder), weights.stat()
    other = tmp_path / "other"
    other.write_bytes(bytes(2_999_999) + b"x")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(weights)
    assert fingerprint(folder) != first


def test_cached_hashes_read_no_file(folder, monkeypatch):
    first = fingerprint(folder)

    def refuse(*_):
        raise AssertionError("the file was read again")

    monkeypatch.setattr(content_hash.hashlib, "file_digest", refuse)
    assert fingerprint(folder) == first
    (folder / "config.json").write_text('{"changed": 1}')
    with pytest.raises(AssertionError, match="read again"):
        fingerprint(folder)


def test_hashes_of_recently_changed_files_are_not_cached(folder, monkeypatch):
    monkeypatch.setattr(content_hash, "SETTLED_SECONDS", 3600)
    fingerprint(folder)
    assert not (folder.parent / "cache").exists()


@pytest.mark.parametrize("damage", ["", "[]", '{"identity": 1}', "\x00"])
def test_a_corrupt_cache_entry_is_ignored(folder, damage):
    first = fingerprint(folder)
    for entry in (folder.parent / "cache" / "hashes").iterdir():
        entry.write_text(damage)
    assert fingerprint(folder) == first


def test_a_read_only_cache_is_no_error(folder, monkeypatch, tmp_path):
    first = fingerprint(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "file" / "below"))
    assert fingerprint(folder) == first


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "training.json", "pytorch_model.bin", ".gitattributes"])
def test_files_without_effect_do_not_change_the_fingerprint(folder, name):
    first = fingerprint(folder)
    (folder / name).write_text("more")
    assert fingerprint(folder) == first


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.safetensors",
        "adapter_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "spiece.model",
        "merges.txt",
        "vocab.bpe",
        "additional_chat_templates/tool_use.jinja",
    ],
)
def test_files_with_effect_change_the_fingerprint(folder, name):
    first = fingerprint(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("more")
    assert fingerprint(folder) != first


def test_file_names_change_the_fingerprint(folder):
    first = fingerprint(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert fingerprint(folder) != first


def test_a_link_has_the_hash_of_its_target(folder, tmp_path):
    weights, blob = folder / "model.safetensors", tmp_path / "blob"
    plain = cached_file_sha256(weights)
    weights.rename(blob)
    weights.symlink_to(blob)
    assert cached_file_sha256(weights) == plain
    flip(blob, 7)
    assert cached_file_sha256(weights) != plain
