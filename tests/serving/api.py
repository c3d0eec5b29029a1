"""A server on a tiny run, for tests: in aiohttp's test client, or on a port of its own in a thread."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from pipelines.inference.engine import GenerationEngine
from pipelines.inference.run_models import RunModels
from pipelines.serving.app import create_app
from pipelines.serving.settings import ServerSettings
from pipelines.storage.run_folder import Run
from tests.serving.page_server import serving

CHAT = "/v1/chat/completions"
PLAIN = "/v1/completions"


def chat(text: str = "the tea", **keys: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "tuned", "messages": [{"role": "user", "content": text}], **keys}


@asynccontextmanager
async def client_of(models: RunModels, engine: GenerationEngine, **settings: Any):
    """A client of the API in this process."""
    app = create_app(models, engine, ServerSettings(**settings))
    async with TestClient(TestServer(app)) as client:
        yield client


def with_client(models: RunModels, test, engine_options: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The result of the coroutine `test(client, engine)`."""

    async def run() -> Any:
        with GenerationEngine(models, **(engine_options or {})) as engine:
            async with client_of(models, engine, **settings) as client:
                return await test(client, engine)

    return asyncio.run(run())


@contextmanager
def running_server(models: RunModels, **settings: Any) -> Iterator[str]:
    """The address of a server on a free port."""
    with GenerationEngine(models) as engine, serving(create_app(models, engine, ServerSettings(**settings))) as address:
        yield address


def events(text: str) -> list[str]:
    """The data of the server-sent events in a response."""
    parts = text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [part.removeprefix("data: ") for part in parts]


@contextmanager
def process(run: Run, *options: str, **environment: str) -> Iterator[Any]:
    """`alfine serve` on a free port: the process, its address and the lines that it prints."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", str(run.folder), "--port", "0", *options]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    lines = []
    try:
        for line in started.stderr:
            lines.append(line)
            if found := re.search(r"http://\S+", line):
                reader = threading.Thread(target=lambda: lines.extend(started.stderr))
                reader.start()
                yield started, found[0], lines
                break
        else:
            pytest.fail("".join(lines))
        started.wait(60)
        reader.join(10)
    finally:
        started.kill()
        started.wait()
        started.stderr.close()
