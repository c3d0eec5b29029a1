"""An engine whose requests are answered in other processes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from pipelines.errors import AlfineError, RunError
from pipelines.evaluation.completions import Completion
from pipelines.inference.requests import GenerationRequest, GenerationStream, TextDelta

AnswerPart = tuple[TextDelta, Completion | None] | AlfineError
"""A part of an answer, the last one with the whole completion; or the error that ends it."""


class RemoteAnswer(Protocol):
    """The parts of one answer, as Ray Serve's `DeploymentResponseGenerator` gives them."""

    def __aiter__(self) -> AsyncIterator[AnswerPart]: ...

    def cancel(self) -> None:
        """Ends the answer where it is computed."""


class RemoteEngine:
    """Relays each answer from `generate` to the stream of its request, in a thread of its own. A context manager.

    Args:
        generate: starts a request elsewhere. Called in the thread's event loop.
        context_length, max_slots: those of all the engines together that answer.
        describe_failure: one line about an exception of `generate` or its parts, for the client.
    """

    def __init__(
        self,
        generate: Callable[[GenerationRequest], RemoteAnswer],
        context_length: int,
        max_slots: int,
        describe_failure: Callable[[Exception], str],
    ) -> None:
        self.context_length, self.max_slots = context_length, max_slots
        self._generate, self._describe_failure = generate, describe_failure
        self._tasks: dict[GenerationStream, asyncio.Task[None]] = {}
        self._begun: set[GenerationStream] = set()
        self._is_closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="alfine-remote-engine", daemon=True)
        self._thread.start()

    # --- for clients ---

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Sends a request. It may be called from every thread. Raises RunError once closed."""
        if self._is_closing:
            raise RunError("the engine has been closed")

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
    def is_alive(self) -> bool:
        """Whether requests are sent."""
        return self._thread.is_alive() and not self._is_closing

    def close(self) -> None:
        """Cancels the requests that have not ended, which fail, and ends the thread."""
        if self._is_closing:
            return
        self._is_closing = True
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
        self._tasks[stream] = self._loop.create_task(self._relay(stream))

    def _cancel(self, stream: GenerationStream) -> None:
        if task := self._tasks.get(stream):
            task.cancel()

    async def _cancel_all(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _relay(self, stream: GenerationStream) -> None:
        answer: RemoteAnswer | None = None
        try:
            answer = self._generate(stream.request)
            await self._forward(answer, stream)
        except asyncio.CancelledError:
            if answer is not None:
                with contextlib.suppress(Exception):  # a replica that has died computes nothing that could be cancelled
                    answer.cancel()
            if stream.is_cancelled:
                stream.put(TextDelta(finish_reason="cancelled"))
            else:
                stream.fail(_closed())
        except AlfineError as error:
            stream.fail(error)
        except Exception as error:  # whatever the transport raises ends this request only
            stream.fail(RunError(self._describe_failure(error)))
        finally:
            self._begun.discard(stream)
            self._tasks.pop(stream, None)

    async def _forward(self, answer: RemoteAnswer, stream: GenerationStream) -> None:
        async for part in answer:
            if isinstance(part, AlfineError):
                raise part
            self._begun.add(stream)
            delta, completion = part
            if delta.finish_reason is not None:
                stream.completion = completion  # before the last part, which a reader waits for
            stream.put(delta)
            if delta.finish_reason is not None:
                return
        raise RunError("the answer ended before it was complete")


def _closed() -> RunError:
    return RunError("the engine was closed before the answer was complete")
