"""An engine whose requests are answered in other processes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Protocol

from pipelines.errors import AlfineError, RunError, UnavailableError
from pipelines.evaluation.completions import Completion
from pipelines.inference.requests import GenerationRequest, GenerationStream, TextDelta

AnswerPart = tuple[TextDelta, Completion | None] | AlfineError
"""A part of an answer, the last one with the whole completion; or the error that ends it."""


class RemoteAnswer(Protocol):
    """The parts of one answer, as Ray Serve's `DeploymentResponseGenerator` gives them."""

    def __aiter__(self) -> AsyncIterator[AnswerPart]: ...

    def cancel(self) -> None:
        """Ends the answer where it is computed."""


POLL_INTERVAL_S = 1.0
MAX_SILENCE_S = 10.0
"""Seconds without an answer to `find_problem` after which that is the problem."""


class RemoteEngine:
    """Relays each answer from `generate` to the stream of its request, in a thread of its own. A context manager.

    While `find_problem` has found one, requests of which no part has come fail, and further ones are refused.

    Args:
        generate: starts a request elsewhere. Called in the thread's event loop.
        context_length, max_slots: those of all the engines together that answer.
        as_alfine_error: the error for the client that stands for an exception of `generate` or its parts.
        find_problem: why no request is answered at present, or None. Called every second, in a thread; it may raise or
            hang.
    """

    def __init__(
        self,
        generate: Callable[[GenerationRequest], RemoteAnswer],
        context_length: int,
        max_slots: int,
        as_alfine_error: Callable[[Exception], AlfineError],
        find_problem: Callable[[], str | None],
    ) -> None:
        self.context_length, self.max_slots = context_length, max_slots
        self._generate, self._as_alfine_error, self._find_problem = generate, as_alfine_error, find_problem
        self._problem: str | None = None
        self._tasks: dict[GenerationStream, asyncio.Task[None]] = {}
        self._begun: set[GenerationStream] = set()
        self._refused: dict[GenerationStream, str] = {}
        """Requests that fail because of a problem, which is the value."""
        self._is_closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="alfine-remote-engine", daemon=True)
        self._thread.start()
        self._monitor = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    # --- for clients ---

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Sends a request. It may be called from every thread. Raises UnavailableError if there is a `problem`."""
        if (problem := self.problem) is not None:
            raise UnavailableError(problem)

        def cancel() -> None:
            self._call(self._cancel, stream)

        stream = GenerationStream(request, cancel)
        self._call(self._start, stream)
        return stream

    @property
    def num_waiting(self) -> int:
        """Requests of which no part has come."""
        return len(self._tasks) - len(self._begun)

    @property
    def num_active(self) -> int:
        """Requests of which a part has come, and not the last."""
        return len(self._begun)

    @property
    def problem(self) -> str | None:
        """Why no request is answered at present; None if requests are answered."""
        return "the engine has been closed" if self._is_closing else self._problem

    def close(self) -> None:
        """Cancels the requests that have not ended, which fail, and ends the thread."""
        if self._is_closing:
            return
        self._is_closing = True
        self._monitor.cancel()
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> RemoteEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the thread ---

    def _call(self, function: Callable[[GenerationStream], None], stream: GenerationStream) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed, and the stream has ended
            self._loop.call_soon_threadsafe(function, stream)

    def _start(self, stream: GenerationStream) -> None:
        if self._is_closing:
            stream.fail(_closed())
            return
        task = self._loop.create_task(self._relay(stream))
        self._tasks[stream] = task
        task.add_done_callback(partial(self._end, stream))

    def _cancel(self, stream: GenerationStream) -> None:
        if task := self._tasks.get(stream):
            task.cancel()

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Updates `problem` until the engine is closed."""
        while True:
            self._problem = await self._current_problem()
            if self._problem is not None:
                for stream in self._tasks.keys() - self._begun:
                    self._refused[stream] = self._problem
                    self._tasks[stream].cancel()
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _current_problem(self) -> str | None:
        # A daemon thread: one that hangs must not keep the process from ending, as those of asyncio's pool would.
        found: asyncio.Future[str | None] = self._loop.create_future()

        def find() -> None:
            try:
                problem = self._find_problem()
            except Exception as error:  # whatever the transport raises when it is gone
                problem = self._as_alfine_error(error).problems[0].message
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(_set_result, found, problem)

        threading.Thread(target=find, name="alfine-replicas", daemon=True).start()
        try:
            return await asyncio.wait_for(found, MAX_SILENCE_S)
        except TimeoutError:
            return "it is unknown whether replicas are running: Ray does not answer"

    async def _relay(self, stream: GenerationStream) -> None:
        answer = self._generate(stream.request)
        try:
            await self._forward(answer, stream)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):  # a replica that has died computes nothing that could be cancelled
                answer.cancel()
            raise

    def _end(self, stream: GenerationStream, task: asyncio.Task[None]) -> None:
        """Ends the stream of a task that has ended.

        A callback of the task, because a task that is cancelled before it starts runs no line of its function.
        """
        problem = self._refused.get(stream)
        self._forget(stream)
        if task.cancelled():
            if stream.is_cancelled:
                stream.put(TextDelta(finish_reason="cancelled"))
            else:
                stream.fail(_closed() if problem is None else UnavailableError(problem))
        elif isinstance(error := task.exception(), AlfineError):
            stream.fail(error)
        elif isinstance(error, Exception):  # whatever the transport raises ends this request only
            stream.fail(self._as_alfine_error(error))

    def _forget(self, stream: GenerationStream) -> None:
        self._begun.discard(stream)
        self._refused.pop(stream, None)
        self._tasks.pop(stream, None)

    async def _forward(self, answer: RemoteAnswer, stream: GenerationStream) -> None:
        async for part in answer:
            if isinstance(part, AlfineError):
                raise part
            self._begun.add(stream)
            delta, completion = part
            if delta.finish_reason is not None:
                stream.completion = completion  # before the last part, which a reader waits for
                self._forget(stream)
            stream.put(delta)
            if delta.finish_reason is not None:
                return
        raise RunError("the answer ended before it was complete")


def _set_result(future: asyncio.Future[str | None], result: str | None) -> None:
    if not future.done():  # it took too long
        future.set_result(result)


def _closed() -> UnavailableError:
    return UnavailableError("the engine was closed before the answer was complete")
