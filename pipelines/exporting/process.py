"""A program of `engines/` in its own process: it cannot use alfine's loading, and its crash is an error message."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import RunError

ENGINES = Path(__file__).parent / "engines"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""An export must load without the network. Progress bars would go to the terminal."""

_CRASHES = {
    signal.SIGILL: "it is compiled for another processor; install llama-cpp-python again with "
    "--force-reinstall --no-cache-dir and the environment variable CMAKE_ARGS=-DGGML_NATIVE=OFF",
    signal.SIGKILL: "the system ended it, as it does when memory runs out",
}


def crash_reason(returncode: int | None) -> str | None:
    """Why a signal ended a program; None if none did."""
    if returncode is None or returncode >= 0:
        return None
    try:
        number = signal.Signals(-returncode)
    except ValueError:
        return f"it ended with signal {-returncode}"
    return _CRASHES.get(number, f"it crashed, {number.name}")


class EngineProcess:
    """A running engine. A context manager: the process ends with the block.

    Args:
        program: the name of the file in `engines/`.
        arguments: those of the engine's constructor, as JSON values.

    Raises RunError if the engine cannot load the export.
    """

    def __init__(self, program: str, arguments: Mapping[str, Any]) -> None:
        self.name = program.removesuffix("_engine.py").replace("_", " ")
        # -P: the folder of the program is not searched for modules.
        command = [sys.executable, "-P", str(ENGINES / program)]
        self._folder = tempfile.TemporaryDirectory(prefix="alfine-check-")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            cwd=self._folder.name,
            env={**os.environ, **OFFLINE},
        )
        try:
            self.description: dict[str, Any] = self._request(dict(arguments), lambda count: None)
        except BaseException:
            self.close()
            raise

    def call(self, method: str, progress: Callable[[int], None] = lambda count: None, **arguments: Any) -> Any:
        """The result of a method of the engine. Raises RunError if the engine fails."""
        return self._request({"call": method, **arguments}, progress)

    def _request(self, request: Mapping[str, Any], progress: Callable[[int], None]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                message = json.loads(line)
                if "result" in message:
                    return message["result"]
                progress(message["progress"])
        except BrokenPipeError:
            pass
        self._process.wait()
        raise RunError(
            f"the check with {self.name} failed ({self._last_error()}); --check-rows 0 exports without a check"
        )

    def _last_error(self) -> str:
        if (reason := crash_reason(self._process.returncode)) is not None:
            return reason
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        return (lines[-1] if lines else f"exit code {self._process.returncode}")[:300]

    def close(self) -> None:
        """Ends the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
