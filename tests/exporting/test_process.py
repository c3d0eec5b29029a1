"""Programs in their own process."""

import signal

import pytest

from pipelines.errors import RunError
from pipelines.exporting import gguf, process


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGILL, "compiled for another processor"),
        (signal.SIGKILL, "memory runs out"),
        (signal.SIGSEGV, "SIGSEGV"),
    ],
)
def test_a_program_that_crashes_is_an_error_with_the_cause(monkeypatch, tmp_path, number, reason):
    """llama.cpp is compiled for one processor, and may meet another."""
    program = f"import os, sys\nprint('a warning', file=sys.stderr, flush=True)\nos.kill(os.getpid(), {int(number)})\n"
    for name in ("llama_cpp_engine.py", "llama_cpp_vocabulary.py"):
        (tmp_path / name).write_text(program)
    monkeypatch.setattr(process, "ENGINES", tmp_path)
    monkeypatch.setattr(gguf, "ENGINES", tmp_path)
    with pytest.raises(RunError, match=f"the check with llama cpp failed .*{reason}"):
        process.start_engine("llama_cpp_engine.py", {})
    with pytest.raises(RunError, match=f"x.gguf: llama.cpp cannot load it .*{reason}"):
        gguf.end_tokens(tmp_path / "x.gguf")
    assert process.llama_cpp_crash_reason(1) is process.llama_cpp_crash_reason(0) is None
