"""Requests to the generation engine, and the streams of their answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from pipelines.errors import AlfineError
from pipelines.evaluation.completions import Completion
from pipelines.inference.run_models import ModelName

EndReason = Literal["stop", "length", "cancelled"]
"""Why an answer ends: at a stop token or stop text, cut at its limit, or because its request was cancelled."""


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt that one model completes.

    Attributes:
        prompt_ids: the tokens of the prompt.
        max_new_tokens: the limit of the completion; it is lowered to what the context leaves.
        temperature: 0 for the most likely token at each step; else tokens are sampled.
        top_p, top_k: sample from the most likely tokens only: those that make up the probability `top_p`, the `top_k`
            first ones (0 for all).
        repetition_penalty: divides the positive logits of tokens of the prompt and the completion, and multiplies the
            negative ones, as transformers does.
        seed: the same seed and prompt draw the same tokens, whatever else the engine computes. None draws others each
            time.
        stop: texts that end the answer and do not become part of it.
        num_logprobs: the number of alternatives whose log probabilities are reported at each token; 0 for those of the
            tokens themselves; None for none.
    """

    model: ModelName
    prompt_ids: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """The log probability of a generated token, in nats, by the softmax of the model's logits (temperature 1).

    `top` has the most likely tokens and their log probabilities, the most likely first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """A part of an answer.

    Attributes:
        text: the next characters of the answer; whole characters, and none of a stop text.
        reasoning: the next characters of the thought before the answer.
        token_ids: the tokens generated since the last part, the stop token included. Text may follow its tokens later.
        logprobs: one for each of `token_ids`, if they were requested.
        finish_reason: set in the last part.
    """

    text: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: EndReason | None = None


class GenerationStream:
    """The answer to one request, part by part: `for delta in stream` in a thread, `async for` in asyncio.

    The engine never waits for a reader: what a slow reader has not taken is joined into one part. One reader at a time.

    Attributes:
        completion: the whole answer once it has ended, as `predict` would give it; None before, and if cancelled.
        logprobs: the log probabilities of all tokens, if they were requested.
    """

    def __init__(self, request: GenerationRequest, wake_engine: Callable[[], None] = lambda: None) -> None:
        self.request = request
        self.completion: Completion | None = None
        self.logprobs: list[TokenLogprob] = []
        self.is_cancelled = False
        self._wake_engine = wake_engine
        self._condition = threading.Condition()
        self._pending: list[TextDelta] = []
        self._error: AlfineError | None = None
        self._has_ended = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    # --- the reader's side ---

    def cancel(self) -> None:
        """Ends the answer where it is. It may be called from every thread, also after the end."""
        self.is_cancelled = True
        self._wake_engine()

    def result(self) -> Completion:
        """Reads the stream to its end. Raises what the iteration raises, and AlfineError for a cancelled request."""
        for _ in self:
            pass
        return self._whole()

    async def wait(self) -> Completion:
        """`result` in asyncio."""
        async for _ in self:
            pass
        return self._whole()

    def __iter__(self) -> Iterator[TextDelta]:
        return self

    def __next__(self) -> TextDelta:
        """Raises AlfineError if the engine failed."""
        with self._condition:
            self._condition.wait_for(lambda: self._pending or self._has_ended)
            delta = self._take()
        if delta is None:
            raise StopIteration
        return delta

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        return self

    async def __anext__(self) -> TextDelta:
        """Raises AlfineError if the engine failed."""
        event = asyncio.Event()
        with self._condition:
            self._waiter = (asyncio.get_running_loop(), event)
            is_ready = bool(self._pending) or self._has_ended
        if not is_ready:
            await event.wait()
        with self._condition:
            self._waiter = None
            delta = self._take()
        if delta is None:
            raise StopAsyncIteration
        return delta

    def _take(self) -> TextDelta | None:
        """What has come since the last call, as one part; None at the end."""
        if not self._pending:
            if self._error is not None:
                raise self._error
            return None
        pending, self._pending = self._pending, []
        first, *more = pending
        if not more:
            return first
        return TextDelta(
            "".join(delta.text for delta in pending),
            "".join(delta.reasoning for delta in pending),
            tuple(token for delta in pending for token in delta.token_ids),
            tuple(logprob for delta in pending for logprob in delta.logprobs),
            pending[-1].finish_reason,
        )

    def _whole(self) -> Completion:
        if self.completion is None:
            raise AlfineError("the request was cancelled")
        return self.completion

    # --- the engine's side ---

    def put(self, delta: TextDelta) -> None:
        """Adds a part. The one with a `finish_reason` is the last."""
        with self._condition:
            self._pending.append(delta)
            self.logprobs += delta.logprobs
            self._has_ended = delta.finish_reason is not None
            self._notify()

    def fail(self, error: AlfineError) -> None:
        """Ends the stream with an error, after the parts that it has."""
        with self._condition:
            self._error, self._has_ended = error, True
            self._notify()

    def _notify(self) -> None:
        self._condition.notify_all()
        if self._waiter is not None:
            loop, event = self._waiter
            self._waiter = None
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)


class RequestEngine(Protocol):
    """What answers requests: the `GenerationEngine` of this process, or a `RemoteEngine` for others."""

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its completion."""

    @property
    def max_slots(self) -> int:
        """The most requests that are answered at once."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for their first token."""

    @property
    def num_active(self) -> int:
        """Requests that are being answered."""

    @property
    def problem(self) -> str | None:
        """Why no request is answered at present; None if requests are answered."""

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Queues a request. Raises AlfineError if it cannot be answered: UnavailableError for a `problem`."""
