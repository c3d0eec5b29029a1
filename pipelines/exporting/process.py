"""The programs of `engines/`, each in its own process, and what their crashes mean."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.evaluation.engine_process import EngineProcess, crash_reason

ENGINES = Path(__file__).parent / "engines"
CLASSES = {"transformers_engine.py": "TransformersEngine", "llama_cpp_engine.py": "LlamaCppEngine"}
"""The class of each engine, by its file in `engines/`."""
LLAMA_CPP_CRASHES: dict[int, str] = {
    signal.SIGILL: "it is compiled for another processor; install llama-cpp-python again with "
    "--force-reinstall --no-cache-dir and the environment variable CMAKE_ARGS=-DGGML_NATIVE=OFF",
}


def start_engine(program: str, arguments: Mapping[str, Any]) -> EngineProcess:
    """Starts the engine of a file in `engines/`. Raises RunError if it cannot load the export."""
    name = program.removesuffix("_engine.py").replace("_", " ")

    def failure(reason: str) -> str:
        return f"the check with {name} failed ({reason}); --check-rows 0 exports without a check"

    crashes = LLAMA_CPP_CRASHES if program.startswith("llama_cpp") else {}
    return EngineProcess(ENGINES / program, CLASSES[program], arguments, failure, crashes)


def llama_cpp_crash_reason(returncode: int | None) -> str | None:
    """Why a signal ended a program of llama.cpp; None if none did."""
    return crash_reason(returncode, LLAMA_CPP_CRASHES)
