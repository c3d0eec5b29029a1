"""The page of `alfine serve` on a scripted API: its completions are what a test says, so that every answer, error and
delay can happen. The page, its routes and the files of the run are real."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from math import log
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from pipelines.config.job import load_run_job
from pipelines.serving.page_routes import add_page_routes, is_public
from pipelines.storage.run_folder import Run
from tests.report.run_folder import demo_run, line, write_lines, write_run

TASKS = {
    "sentiment": {
        "prompt": "Is this review positive or negative?\n{review}",
        "completion": "{label}",
        "metric": "exact_match",
        "max_new_tokens": 32,
    },
    "summaries": {"prompt": "Summarise in one sentence.\n{text}", "completion": "{summary}", "metric": "rouge"},
    "code": {"prompt": "Write a Python function. {description}", "completion": "{code}", "metric": "unit_tests"},
}


def demo_page_run(folder: Path, rows: int = 80) -> Path:
    """A finished run of the shipped tasks, without a model."""
    return with_config(demo_run(folder, rows), TASKS)


def with_config(folder: Path, tasks: dict[str, dict[str, Any]], **pipeline: Any) -> Path:
    """Writes the config that a server reads into a run folder."""
    tasks = {name: {"data": "rows.jsonl", **task} for name, task in tasks.items()}
    config = {
        "pipeline": {"system": "Answer briefly.", "tasks": tasks, **pipeline},
        "base_model": "smollm2-135m-instruct",
        "adapter": {"type": "lora"},
        "generation": {"max_new_tokens": 96},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def one_row_run(folder: Path, task: str, fields: dict[str, Any], config: dict[str, Any]) -> Path:
    """A run with one task and one test row."""
    completions = [[line(task, 1, "prompt", "reference", answer, fields=fields)] for answer in ("b", "t")]
    return with_config(write_run(folder, {task: "rouge"}, *completions), {task: {"metric": "rouge", **config}})


type Script = Callable[[dict[str, Any], web.Request], AsyncIterator[dict[str, Any]]]


def chunk(content: str = "", *, tokens: list[tuple[str, float]] | None = None, **values: Any) -> dict[str, Any]:
    """A chunk of a streamed chat completion. `tokens`: texts and probabilities; one for all of `content` if None."""
    delta = {key: values.pop(key) for key in ("reasoning_content",) if key in values}
    if content:
        delta["content"] = content
    entries = [
        {
            "token": text,
            "logprob": log(probability),
            "bytes": list(text.encode()),
            "top_logprobs": [
                {"token": text, "logprob": log(probability), "bytes": list(text.encode())},
                {"token": " other", "logprob": log((1 - probability) * 0.7 + 1e-9), "bytes": list(b" other")},
                {"token": "\n", "logprob": log((1 - probability) * 0.2 + 1e-9), "bytes": list(b"\n")},
            ],
        }
        for text, probability in (tokens if tokens is not None else [(content, 0.8)] if content else [])
    ]
    choice = {"index": 0, "delta": delta, "logprobs": {"content": entries}, "finish_reason": None, **values}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


def words(text: str) -> list[str]:
    """The text in parts such as tokens: words with the space before them."""
    parts = text.replace(" ", "\0 ").replace("\n", "\0\n").split("\0")
    return [part for part in parts if part]


def answering(base: str = "The review is positive.", tuned: str = "positive", delay: float = 0.0) -> Script:
    """Each model streams its answer word by word."""

    async def script(body: dict[str, Any], request: web.Request) -> AsyncIterator[dict[str, Any]]:
        text = {"base": base, "tuned": tuned}[body["model"]]
        for number, word in enumerate(words(text)):
            yield chunk(word, tokens=[(word, [0.97, 0.55, 0.31, 0.08, 0.999][number % 5])])
            await asyncio.sleep(delay)
        yield chunk(finish_reason="stop")

    return script


def until(page: Any, condition: str, seconds: float = 30.0) -> None:
    """Waits for a JavaScript expression. Playwright's own function needs eval(), which the page's policy forbids."""
    ends = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < ends, f"not within {seconds} s: {condition}"
        page.wait_for_timeout(20)


def wait_for_answers(page: Any, turns: int = 1) -> None:
    """Waits until `turns` turns are on the page and nothing streams."""
    until(
        page,
        f"document.querySelectorAll('.pair').length >= {turns} && !document.querySelector('.busy') && "
        "document.getElementById('stop').hidden",
    )


class ScriptedServer:
    """The server. `script` makes the completions; `requests` are the bodies that it has received."""

    def __init__(self, folder: Path, script: Script, key: str | None = None) -> None:
        self.script, self.key = script, key
        self.requests: list[dict[str, Any]] = []
        self.failures: list[tuple[int, str, dict[str, str]]] = []
        """Answers to the next completions instead of a stream: status, message, headers. Status 0 closes the
        connection."""
        self.unready = 0
        """Requests that are answered with 503 before the server is ready."""
        run = Run.open(folder)
        self.app = web.Application(middlewares=[self._authenticate])
        self.app.router.add_post("/v1/chat/completions", self._complete)
        add_page_routes(self.app, run, load_run_job(folder))

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        authorized = self.key is None or request.headers.get("Authorization") == f"Bearer {self.key}"
        if not authorized and not is_public(request.path):
            return web.json_response({"error": {"message": "wrong API key"}}, status=401)
        if self.unready and not is_public(request.path):
            self.unready -= 1
            return web.json_response({"error": {"message": "loading"}}, status=503, headers={"Retry-After": "1"})
        return await handler(request)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if self.failures:
            status, message, headers = self.failures.pop(0)
            if status:
                return web.json_response({"error": {"message": message}}, status=status, headers=headers)
            request.transport.close()
            return web.Response()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        parts = self.script(body, request)
        with suppress(ConnectionError):  # the page stops
            async with aclosing(parts):
                async for part in parts:
                    if part is CUT:
                        request.transport.close()
                        return response
                    await response.write(f"data: {json.dumps(part)}\n\n".encode())
            await response.write(b"data: [DONE]\n\n")
        return response


CUT: dict[str, Any] = {"cut": True}
"""A script that yields it closes the connection."""


@contextmanager
def serving(app: web.Application) -> Iterator[str]:
    """Serves the app on a free port of this machine, in a thread. Yields its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[web.AppRunner, int]:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


COLUMN = "<img src=x onerror=window.ran=1>"
"""The name of a column that tries to be more than text."""


def hostile_run(folder: Path, texts: list[str]) -> Path:
    """A run whose rows, answers, template, columns and sample prompts try to be more than text."""
    completions = [
        [
            line("t", n, text, texts[n - 2], texts[n - shift], fields={"text": text, COLUMN: text, "label": "x"})
            for n, text in enumerate(texts)
        ]
        for shift in (0, 1)
    ]
    write_run(folder, {"t": "rouge"}, *completions)
    for side in ("base", "tuned"):
        prompts = [{"title": text[:60], "prompt": text, "completion": side} for text in texts]
        write_lines(folder / side / "sample_prompts.jsonl", prompts)
    template = f"<b>{{text}}</b> <script>window.ran=1</script> {{{COLUMN}}}"
    return with_config(folder, {"t": {"prompt": template, "completion": "{label}", "metric": "rouge"}})
