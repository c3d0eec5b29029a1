"""The generation engine: one thread that decodes the requests of both models of a run with continuous batching.

Requests join between two tokens of the others (Orca, OSDI 2022). Sequences of similar length share a `RequestPool`, so
that a long one does not make all others take its memory. Greedy answers are those of `predict` up to the rounding of
the dtype.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from pipelines.console.plain_text import count
from pipelines.errors import AlfineError, DataError, MachineError, RunError, UnavailableError
from pipelines.evaluation.slot_decoding import cache_bytes, cache_bytes_per_token
from pipelines.evaluation.slot_pool import supports_slots
from pipelines.inference.generate_fallback import generate_batch
from pipelines.inference.request_pool import RequestPool
from pipelines.inference.requests import GenerationRequest, GenerationStream
from pipelines.inference.run_models import MODEL_NAMES, ModelName, RunModels
from pipelines.inference.sequence import ActiveSequence
from pipelines.modeling.memory import is_out_of_memory

DEFAULT_MAX_SLOTS = 32
MIN_CAPACITY = 256
"""Tokens per slot of the pool of the shortest sequences; those of the next pools double."""
PREFILL_TOKENS_PER_STEP = 2048
"""Tokens of new prompts that are computed before the other sequences get their next token."""


@dataclass
class EngineStatistics:
    """What the engine has done so far, for metrics."""

    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_steps: int = 0
    ended: Counter[str] = field(default_factory=Counter)


class GenerationEngine:
    """Decodes requests in a thread of its own. A context manager; `submit` may be called from every thread.

    Args:
        models: the models of a run.
        max_slots: the most sequences that are decoded at once, of both models together.
        max_context: the most tokens of a prompt and its completion; None for the context of the model.
    """

    def __init__(self, models: RunModels, max_slots: int = DEFAULT_MAX_SLOTS, max_context: int | None = None) -> None:
        self.models, self.max_slots = models, max_slots
        self.context_length = min(models.tuned.context_length, max_context or models.tuned.context_length)
        self.statistics = EngineStatistics()
        self._condition = threading.Condition()
        self._waiting: deque[ActiveSequence] = deque()
        self._active: list[ActiveSequence] = []
        self._pools: dict[tuple[ModelName, int], RequestPool] = {}
        self._uses_slots: dict[str, bool] = {}
        self._is_closing = False
        self._cache_tokens = max(1, cache_bytes(models.tuned.model) // cache_bytes_per_token(models.tuned.model))
        self._thread = threading.Thread(target=self._run, name="alfine-engine", daemon=True)
        self._thread.start()

    # --- for clients ---

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Queues a request. Raises DataError if the context cannot hold the prompt, UnavailableError once closed."""
        self.models.select(request.model)
        room = self.context_length - len(request.prompt_ids)
        if not request.prompt_ids:
            raise DataError("the prompt has no tokens; write some text")
        if room < 1:
            raise DataError(
                f"the prompt has {count(len(request.prompt_ids), 'token')}, which leaves no room for a completion in "
                f"the context of {self.context_length:,} tokens; shorten it"
            )
        if request.max_new_tokens < 1:
            raise DataError(f"max_new_tokens is {request.max_new_tokens}; write a positive number")
        stream = GenerationStream(request, self._wake)
        sequence = ActiveSequence(stream, self.models.prompt_format, min(request.max_new_tokens, room))
        with self._condition:
            if self._is_closing:
                raise UnavailableError("the engine has been closed")
            self._waiting.append(sequence)
            self._condition.notify()
        return stream

    @property
    def num_waiting(self) -> int:
        """Requests that no token has been generated for, and that have no slot."""
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        """Requests that have a slot."""
        return len(self._active)

    @property
    def problem(self) -> str | None:
        """Why no request is answered; None if requests are answered."""
        return None if self._thread.is_alive() and not self._is_closing else "the engine has been closed"

    def close(self) -> None:
        """Ends the thread. Requests that have not ended fail."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        self._thread.join()

    def __enter__(self) -> GenerationEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify()

    # --- the thread ---

    def _run(self) -> None:
        try:
            self._decode_until_closed()
        finally:
            with self._condition:
                self._is_closing = True
                left = [*self._active, *self._waiting]
            error = UnavailableError("the engine was closed before the answer was complete")
            for sequence in left:
                if not sequence.has_ended:
                    sequence.fail(error)

    def _decode_until_closed(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._active or self._is_closing)
                if self._is_closing:
                    return
            self._admit()
            for (name, _), pool in list(self._pools.items()):
                if pool.sequences:
                    self._guarded(list(pool.sequences), partial(self._step, name, pool), pool.clear)
            self._forget_ended()

    def _step(self, name: ModelName, pool: RequestPool) -> None:
        with self._computing(name):
            pool.step()
        self.statistics.num_steps += 1

    def _admit(self) -> None:
        """Gives waiting requests slots, in their order, as far as there are slots and memory."""
        self._drop_cancelled()
        num_tokens = 0
        while (batch := self._next_batch()) and num_tokens < PREFILL_TOKENS_PER_STEP:
            num_tokens += sum(len(sequence.prompt) for sequence in batch)
            self._active += batch
            self._guarded(batch, partial(self._start, batch))
            self.statistics.num_prompt_tokens += sum(len(sequence.prompt) for sequence in batch)

    def _start(self, batch: list[ActiveSequence]) -> None:
        """Computes the prompts of new sequences of one pool; those of a model without slots are decoded to the end."""
        name, pool = batch[0].stream.request.model, self._pool(batch[0])
        with self._computing(name) as model:
            if pool is None:
                generate_batch(model, batch)
            else:
                pool.add(batch)

    @contextmanager
    def _computing(self, name: ModelName) -> Iterator[torch.nn.Module]:
        with self.models.active(name) as loaded, torch.inference_mode():
            yield loaded.model

    def _next_batch(self) -> list[ActiveSequence]:
        """Removes the next requests from the queue that one pool takes at once."""
        batch: list[ActiveSequence] = []
        num_tokens = 0
        with self._condition:
            while self._waiting and len(self._active) + len(batch) < self.max_slots:
                sequence = self._waiting[0]
                is_first = not batch
                if not is_first and self._pool_key(sequence) != self._pool_key(batch[0]):
                    break
                num_tokens += len(sequence.prompt)
                if not is_first and num_tokens > PREFILL_TOKENS_PER_STEP:
                    break
                if (self._active or batch) and not self._fits_memory(sequence, len(batch) + 1):
                    break
                batch.append(self._waiting.popleft())
        return batch

    def _fits_memory(self, sequence: ActiveSequence, count: int) -> bool:
        """Whether the cache of all pools stays within its limit with `count` more sequences like this one."""
        key = self._pool_key(sequence)
        others = sum(pool.allocated * pool.capacity for other, pool in self._pools.items() if other != key)
        pool = self._pools.get(key)
        slots = pool.slots_for(count) if pool else 1 << (count - 1).bit_length()
        return others + slots * key[1] <= self._cache_tokens

    def _pool_key(self, sequence: ActiveSequence) -> tuple[ModelName, int]:
        capacity = MIN_CAPACITY
        while capacity < sequence.total_length:
            capacity *= 2
        return sequence.stream.request.model, min(capacity, max(self.context_length, sequence.total_length))

    def _pool(self, sequence: ActiveSequence) -> RequestPool | None:
        """The pool for a sequence; None if its model is not decoded in slots."""
        key = self._pool_key(sequence)
        name = key[0]
        if name not in self._uses_slots:
            with self._computing(name) as model:
                self._uses_slots[name] = supports_slots(model)
        if not self._uses_slots[name]:
            return None
        return self._pools.setdefault(key, RequestPool(self.models.select(name).model, key[1]))

    def _guarded(
        self, sequences: list[ActiveSequence], work: Callable[[], None], reset: Callable[[], None] = lambda: None
    ) -> None:
        """Calls `work`. If it fails, these sequences fail and `reset` is called; the engine goes on with the others."""
        try:
            work()
        except Exception as error:  # whatever a model raises must not end the requests of others
            reset()
            failure = _as_alfine_error(error)
            for sequence in sequences:
                if not sequence.has_ended:
                    sequence.fail(failure)

    def _drop_cancelled(self) -> None:
        with self._condition:
            cancelled = [sequence for sequence in self._waiting if sequence.stream.is_cancelled]
            for sequence in cancelled:
                self._waiting.remove(sequence)
        for sequence in cancelled:
            sequence.cancel()
            self.statistics.ended["cancelled"] += 1

    def _forget_ended(self) -> None:
        for sequence in self._active:
            if sequence.has_ended:
                completion = sequence.stream.completion
                reason = "cancelled" if sequence.stream.is_cancelled else "error"
                self.statistics.ended[completion.finish_reason if completion else reason] += 1
                self.statistics.num_generated_tokens += len(sequence.generated)
        self._active = [sequence for sequence in self._active if not sequence.has_ended]


def _as_alfine_error(error: Exception) -> AlfineError:
    if isinstance(error, AlfineError):
        return error
    if is_out_of_memory(error):
        return MachineError("out of memory; lower the number of requests at once, or the length of prompts")
    reason = next(iter(str(error).splitlines()), "")[:200]
    return RunError(f"the model failed: {type(error).__name__}: {reason}")


def load_engine(models: RunModels, **options: Any) -> GenerationEngine:
    """A running engine with packed weights, after a first token of each model: what fails, fails here."""
    models.pack_weights()
    engine = GenerationEngine(models, **options)
    for name in MODEL_NAMES:
        engine.submit(GenerationRequest(name, [models.prompt_format.stop_ids[0]], 1)).result()
    return engine
