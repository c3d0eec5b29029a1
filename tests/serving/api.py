"""A server on a tiny run, for tests: in aiohttp's test client, or on a port of its own in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from pipelines.inference.engine import GenerationEngine
from pipelines.inference.run_models import RunModels
from pipelines.serving.app import create_app
from pipelines.serving.settings import ServerSettings
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
