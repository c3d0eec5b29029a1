"""Clients that do everything wrong, beside clients that must be served."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psutil

from tests.serving.api import CHAT, PLAIN, chat

GOOD = chat("the tea", max_tokens=12)
VALUES: list[Any] = [None, True, -1, 0, 1.5, 1e300, "", "x", [], {}, [[]], {"a": 1}, 2**80, "\0", "🙂" * 50, [None]]


def count_tasks() -> int:
    """The asyncio tasks of this process."""
    return len(asyncio.all_tasks())


class Abuse:
    """Sends requests of many kinds, a few at once, over raw sockets. `faults` are the answers that must not happen."""

    def __init__(self, address: str, seed: int) -> None:
        self.host, _, port = address.removeprefix("http://").rpartition(":")
        self.port = int(port)
        self.rng = random.Random(seed)
        self.faults: list[str] = []
        self.statuses: Counter[int] = Counter()
        self.num_served = self.num_refused = self.num_disconnected = self.num_slow = 0
        self.good_answer: str | None = None

    def memory(self) -> int:
        return int(psutil.Process().memory_info().rss)

    async def run(self, count: int, at_once: int = 24) -> None:
        limit = asyncio.Semaphore(at_once)
        kinds = [self.good, self.malformed, self.malformed, self.broken_http, self.leave_stream, self.leave_early]

        async def one() -> None:
            async with limit:
                kind = self.slow if self.rng.random() < 0.03 else self.rng.choice(kinds)
                try:
                    async with asyncio.timeout(60):
                        await kind()
                except (ConnectionError, asyncio.IncompleteReadError):
                    pass
                except TimeoutError:
                    self.faults.append(f"{kind.__name__} was not answered")

        await asyncio.gather(*(one() for _ in range(count)))

    # --- kinds of clients ---

    async def good(self) -> None:
        """A client that must be served, or told to come again later."""
        for _ in range(100):
            status, text = await self._post(json.dumps(GOOD).encode())
            if status != 429:
                break
            await asyncio.sleep(0.2)
        if status != 200:
            self.faults.append(f"a good request got {status}: {text[:200]}")
            return
        answer = json.loads(text)["choices"][0]["message"]["content"]
        self.good_answer = self.good_answer or answer
        if answer != self.good_answer:
            self.faults.append(f"a good request got {answer!r} instead of {self.good_answer!r}")
        self.num_served += 1

    async def malformed(self) -> None:
        """A body with a random fault."""
        body: Any = dict(GOOD)
        for _ in range(self.rng.randrange(1, 4)):
            keys = [*body, "temperature", "top_p", "n", "seed", "stop", "stream", "logprobs", "top_logprobs", "tools"]
            keys += ["task", "row", "prompt", "stream_options", "max_completion_tokens", "zzz", "messages", "model"]
            body[self.rng.choice(keys)] = self.rng.choice(VALUES)
        content = json.dumps(body).encode()
        if self.rng.random() < 0.4:
            content = self._damage(content)
        status, text = await self._post(content, path=self.rng.choice((CHAT, CHAT, PLAIN)))
        if status >= 400:
            self.num_refused += 1
            if set(json.loads(text)["error"]) != {"message", "type", "param", "code"}:
                self.faults.append(text[:200])

    def _damage(self, content: bytes) -> bytes:
        position = self.rng.randrange(len(content))
        return self.rng.choice(
            (
                content[:position],
                content[:position] + bytes([self.rng.randrange(256)]) + content[position + 1 :],
                content * self.rng.randrange(2, 200),
                b"[" * self.rng.randrange(5000),
                b"",
                content[:position] + b"\\ud800" + content[position:],
            )
        )

    async def broken_http(self) -> None:
        """Bytes that are no request, or less of one than they promise."""
        async with self._connection() as (reader, writer):
            head = f"POST {CHAT} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n".encode()
            writer.write(
                self.rng.choice(
                    (
                        b"\0" * 100,
                        b"GET / HTTP/9.9\r\n\r\n",
                        head + b"Content-Length: 1000\r\n\r\n{",
                        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
                        head + b"Content-Length: -1\r\n\r\n",
                        head + b"X: " + b"y" * 20_000 + b"\r\n\r\n",
                        b"PUT /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
                        b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
                    )
                )
            )
            await writer.drain()
            writer.write_eof()
            await self._read_status(reader)

    async def leave_stream(self) -> None:
        """Disconnects in the middle of a stream."""
        async with self._connection() as (reader, writer):
            body = json.dumps({**GOOD, "max_tokens": 300, "stream": True, "temperature": 2}).encode()
            writer.write(self._request(body, CHAT))
            await reader.read(self.rng.randrange(1, 2000))
            self.num_disconnected += 1

    async def leave_early(self) -> None:
        """Disconnects before there is an answer."""
        async with self._connection() as (_, writer):
            body = json.dumps({**GOOD, "max_tokens": 300, "stream": self.rng.random() < 0.5}).encode()
            writer.write(self._request(body, CHAT))
            await asyncio.sleep(self.rng.random() * 0.02)
            self.num_disconnected += 1

    async def slow(self) -> None:
        """Reads a stream a few bytes at a time."""
        async with self._connection() as (reader, writer):
            body = json.dumps({**GOOD, "max_tokens": 100, "stream": True, "n": 4, "temperature": 1}).encode()
            writer.write(self._request(body, CHAT))
            for _ in range(20):
                if not await reader.read(40):
                    break
                await asyncio.sleep(0.05)
            self.num_slow += 1

    # --- HTTP ---

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection that is closed, or reset, at the end of the block."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield reader, writer
        finally:
            if self.rng.random() < 0.5:
                writer.transport.abort()
            writer.close()

    def _request(self, body: bytes, path: str) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nContent-Type: application/json\r\n"
        return f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def _post(self, body: bytes, path: str = CHAT) -> tuple[int, str]:
        """The status and the body of the response."""
        async with self._connection() as (reader, writer):
            writer.write(self._request(body, path))
            status = await self._read_status(reader)
            head = await reader.readuntil(b"\r\n\r\n")
            content = await reader.read()
            if b"chunked" in head.lower():
                content = b""
            return status, content.decode()

    async def _read_status(self, reader: asyncio.StreamReader) -> int:
        line = await reader.readline()
        if not line:
            raise ConnectionError
        status = int(line.split()[1])
        self.statuses[status] += 1
        if status >= 500:
            self.faults.append(f"status {status}")
        return status
