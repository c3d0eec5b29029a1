"""A class of an inference engine in its own process: it cannot use alfine's code, and its crash is an error message."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.errors import RunError

SERVER = Path(__file__).parent / "engine_server.py"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Nothing is loaded from the network or reported to it. Progress bars would go to the terminal."""
CLOSING_SECONDS = 10.0
"""Time in which an engine may end by itself, with the processes that it has started."""

_CRASHES: dict[int, str] = {signal.SIGKILL: "the system ended it, as it does when memory runs out"}


def crash_reason(returncode: int | None, causes: Mapping[int, str] | None = None) -> str | None:
    """Why a signal ended a program; None if none did. `causes` are those of this program, by signal."""
    if returncode is None or returncode >= 0:
        return None
    try:
        number = signal.Signals(-returncode)
    except ValueError:
        return f"it ended with signal {-returncode}"
    causes = {**_CRASHES, **(causes or {})}
    return causes.get(number, f"it crashed, {number.name}")


class EngineProcess:
    """A running engine. A context manager: the process ends with the block.

    Args:
        file: the file of the engine's class, see `engine_server`.
        name: the name of the class.
        arguments: those of its constructor, as JSON values.
        failure: the message of the error for a reason.
        crash_causes: what a signal that ends this engine means.
        environment: further variables of the process.

    Raises RunError if the engine cannot load its model.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        arguments: Mapping[str, Any],
        failure: Callable[[str], str],
        crash_causes: Mapping[int, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._failure, self._crash_causes = failure, crash_causes
        # -P: the folder of the program is not searched for modules.
        command = [sys.executable, "-P", str(SERVER), str(file), name]
        self._folder = tempfile.TemporaryDirectory(prefix="alfine-engine-")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            cwd=self._folder.name,
            env={**os.environ, **OFFLINE, **(environment or {})},
            start_new_session=True,  # a process group, which ends as a whole; Ctrl-C is for this process
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
        except BaseException:  # such as Ctrl-C, while the engine is at work and does not read its input
            self._process.kill()
            raise
        self._process.wait()
        raise RunError(self._failure(self._last_error()))

    def _last_error(self) -> str:
        if (reason := crash_reason(self._process.returncode, self._crash_causes)) is not None:
            return reason
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        if lines and re.match(r"[\w.]+(:|$)", lines[-1]) is None:
            # Programs may log after the error that ended them.
            lines += [match[0] for line in lines if (match := re.search(r"\b\w+(Error|Exception): .+", line))]
        return (lines[-1] if lines else f"exit code {self._process.returncode}")[:300]

    def close(self) -> None:
        """Ends the process, and those that it has started."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # processes that the engine has started and left behind

        self._errors.seek(0)
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
