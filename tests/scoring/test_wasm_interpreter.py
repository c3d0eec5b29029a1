"""The compiled interpreter in the cache folder, tested with a module that compiles in a millisecond."""

from __future__ import annotations

from pathlib import Path

import pytest
import wasmtime

from pipelines.errors import MachineError
from pipelines.scoring import wasm_interpreter
from pipelines.scoring.wasm_interpreter import CHECKSUM, MODULE, compile_into, compiled, is_compiled


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a small module instead of the interpreter."""
    (tmp_path / "small.wasm").write_bytes(
        wasmtime.wat2wasm('(module (func (export "one") (result i32) (i32.const 1)))')
    )
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wasm_interpreter, "_snapshot", lambda: tmp_path / "small.wasm")
    monkeypatch.setattr(wasm_interpreter, "_compile_in_subprocess", compile_into)
    monkeypatch.setattr(wasm_interpreter, "_folder", wasm_interpreter._folder.__wrapped__)
    return tmp_path / "cache" / "sandbox"


def load() -> wasmtime.Module:
    module: wasmtime.Module = compiled.__wrapped__()
    return module


def test_compiled_once(cache: Path) -> None:
    assert not is_compiled()
    assert [export.name for export in load().exports] == ["one"]
    assert is_compiled()
    (file,) = cache.glob(f"*/{MODULE}")
    before = file.stat()
    load()
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.suffix for path in cache.iterdir() if path.is_file()] == [".lock"]  # no scratch folder is left


@pytest.mark.parametrize("damage", ["bytes", "cut", "gone", "no sum", "another sum"])
def test_a_damaged_module_is_compiled_again(cache: Path, damage: str) -> None:
    load()
    (file,) = cache.glob(f"*/{MODULE}")
    content, sum_file = file.read_bytes(), file.with_name(CHECKSUM)
    match damage:
        case "bytes":
            file.write_bytes(content[:-100] + bytes(100))
        case "cut":
            file.write_bytes(content[:-100])
        case "gone":
            file.unlink()
        case "no sum":
            sum_file.unlink()
        case "another sum":
            sum_file.write_bytes(b"\xff")
    load()
    assert len(file.read_bytes()) == len(content) and wasm_interpreter._is_intact(file.parent)


def test_a_module_of_another_machine_is_compiled_again(cache: Path) -> None:
    load()
    (file,) = cache.glob(f"*/{MODULE}")
    file.write_bytes(b"another processor's")
    file.with_name(CHECKSUM).write_text(wasm_interpreter.file_sha256(file))
    assert [export.name for export in load().exports] == ["one"]


def test_another_interpreter_has_another_folder(cache: Path, tmp_path: Path) -> None:
    load()
    (tmp_path / "small.wasm").write_bytes(wasmtime.wat2wasm("(module)"))
    assert not is_compiled() and load().exports == []
    assert len([*cache.glob(f"*/{MODULE}")]) == 2


def test_a_cache_that_cannot_be_written_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(wasm_interpreter, "_folder", wasm_interpreter._folder.__wrapped__)
    with pytest.raises(MachineError) as raised:
        load()
    assert "cannot be compiled into" in str(raised.value) and "ALFINE_CACHE names another folder" in str(raised.value)
    assert "Not a directory" in str(raised.value) and "\n" not in str(raised.value)
