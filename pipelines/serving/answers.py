"""From a request's body to the streams of its answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pipelines.errors import AlfineError, ConfigError, DataError
from pipelines.inference.prompts import Prompt
from pipelines.inference.requests import GenerationRequest, GenerationStream, RequestEngine, TextDelta, TokenLogprob
from pipelines.inference.run_models import MODEL_NAMES, ModelName, RunFormat
from pipelines.inference.sampling_defaults import SamplingDefaults
from pipelines.inference.token_text import TokenTexts
from pipelines.serving.bodies import ChatBody, CompletionBody
from pipelines.serving.errors import RETRY_AFTER, ApiError, as_api_error
from pipelines.serving.metrics import Metrics
from pipelines.serving.settings import ServerSettings


@dataclass
class Answers:
    """The answers to one request, each a stream; those of one prompt after another.

    Attributes:
        prompts: the prompts, each of which has the same number of answers.
        started: when the request came, by `time.perf_counter`.
    """

    model: ModelName
    prompts: list[Prompt]
    streams: list[GenerationStream]
    started: float = field(default_factory=time.perf_counter)

    def usage(self) -> dict[str, Any]:
        """The tokens of all prompts and completions that have ended, as OpenAI counts them."""
        completions = [stream.completion for stream in self.streams if stream.completion is not None]
        prompt_tokens = sum(len(prompt.ids) for prompt in self.prompts)
        completion_tokens = sum(completion.num_generated_tokens for completion in completions)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "completion_tokens_details": {
                "reasoning_tokens": sum(completion.num_reasoning_tokens for completion in completions)
            },
        }

    async def deltas(self) -> AsyncIterator[tuple[int, TextDelta]]:
        """The parts of all answers as they come, each with the index of its answer."""
        if len(self.streams) == 1:
            async for delta in self.streams[0]:
                yield 0, delta
            return
        tasks = {asyncio.ensure_future(anext(stream, None)): index for index, stream in enumerate(self.streams)}
        try:
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    index, part = tasks.pop(task), task.result()
                    if part is not None:
                        tasks[asyncio.ensure_future(anext(self.streams[index], None))] = index
                        yield index, part
        finally:
            for task in tasks:
                task.cancel()


class AnswerService:
    """Answers the requests of one run's models.

    Raises ApiError for requests that cannot be answered.
    """

    def __init__(self, models: RunFormat, engine: RequestEngine, settings: ServerSettings, metrics: Metrics) -> None:
        self.models, self.engine, self.settings, self.metrics = models, engine, settings, metrics
        self.texts = TokenTexts(models.prompt_format.tokenizer)
        self.defaults = SamplingDefaults.from_generation(models.job.generation)
        self.is_stopping = False
        self.num_running = 0

    def check_model(self, name: str) -> ModelName:
        """The name of a model. Raises ApiError with the names that there are for another one."""
        for known in MODEL_NAMES:
            if name == known:
                return known
        names = " and ".join(MODEL_NAMES)
        raise ApiError(404, f"no model {name!r:.80}; the models are {names}", param="model", code="model_not_found")

    async def chat_prompt(self, body: ChatBody) -> Prompt:
        """The prompt of a conversation, or of a row in the template of its task.

        Messages with a task continue the conversation that a row began: with the system turn, the variables and the
        limits of the task.
        """
        if body.row is not None and body.task is None:
            raise ApiError(400, "row needs task", param="task", code="missing_required_parameter")
        if body.row is None and body.messages is None:
            message, param = ("messages is missing", "messages") if body.task is None else ("task needs row", "row")
            raise ApiError(400, message, param=param, code="missing_required_parameter")
        if body.row is not None and body.messages:
            message = "send messages, or task and row, not both"
            raise ApiError(400, message, param="messages", code="invalid_value")
        if body.row is not None:
            return await self._build(self.models.prompts.from_row, body.task, body.row, param="row")
        return await self._build(self.models.prompts.from_messages, body.messages, body.task, param="messages")

    async def completion_prompts(self, body: CompletionBody) -> list[Prompt]:
        """The prompts of a request for plain completions."""
        builder = self.models.prompts
        self._check_count(len(body.prompts) * (body.n or 1))
        return [
            await self._build(
                builder.from_text if isinstance(prompt, str) else builder.from_ids, prompt, param="prompt"
            )
            for prompt in body.prompts
        ]

    async def _build(self, build: Any, *arguments: Any, param: str) -> Prompt:
        """A prompt, built in a thread: rendering and tokenizing a long text would hold up the streams of others."""
        try:
            prompt: Prompt = await asyncio.to_thread(build, *arguments)
        except (DataError, ConfigError) as error:
            raise ApiError(400, error.problems[0].message, param=param, code="invalid_prompt") from None
        return prompt

    @asynccontextmanager
    async def answers(
        self, body: ChatBody | CompletionBody, model: ModelName, prompts: list[Prompt], param: str
    ) -> AsyncIterator[Answers]:
        """Queues the answers to all prompts. What has not ended at the end of the block is cancelled."""
        count = body.n or 1
        requests = [self._request(body, model, prompt, number, param) for prompt in prompts for number in range(count)]
        self._check_capacity(len(requests))
        streams: list[GenerationStream] = []
        self.num_running += len(requests)
        try:
            for request in requests:
                streams.append(self.engine.submit(request))
            yield Answers(model, prompts, streams)
        except AlfineError as error:
            raise as_api_error(error) from None
        finally:
            self.num_running -= len(requests)
            for stream in streams:
                if stream.completion is None:
                    stream.cancel()
            self._count(model, prompts, streams)

    def _request(
        self, body: ChatBody | CompletionBody, model: ModelName, prompt: Prompt, number: int, param: str
    ) -> GenerationRequest:
        room = min(prompt.context_length, self.engine.context_length) - len(prompt.ids)
        wanted = body.token_limit
        if room < (wanted or 1):
            asked = "" if wanted is None else f" and max_tokens {wanted:,}"
            raise ApiError(
                400,
                f"the context is {self.engine.context_length:,} tokens; the prompt has {len(prompt.ids):,}{asked}; "
                "shorten the prompt" + ("" if wanted is None else ", or lower max_tokens"),
                param=param,
                code="context_length_exceeded",
            )
        return GenerationRequest(
            model,
            prompt.ids,
            prompt.max_new_tokens if wanted is None else wanted,
            **self.defaults.settings(body.temperature, body.top_p, body.top_k, body.repetition_penalty),
            seed=None if body.seed is None else body.seed + number,
            stop=body.stops,
            num_logprobs=body.num_logprobs,
        )

    def _check_capacity(self, count: int) -> None:
        """Raises ApiError if the server is stopping, or as many answers wait as may wait."""
        if self.is_stopping:
            raise ApiError(503, "the server is stopping", code="stopping", headers=RETRY_AFTER)
        self._check_count(count)
        if self.num_running + count > self._max_running:
            message = f"{self.num_running} answers are being generated or wait; try again later"
            raise ApiError(429, message, code="queue_full", headers=RETRY_AFTER)

    @property
    def _max_running(self) -> int:
        return self.settings.max_concurrency + self.settings.max_waiting

    def _check_count(self, count: int) -> None:
        """Raises ApiError for more answers to one request than may run and wait."""
        if count > self._max_running:
            message = f"the request has {count:,} answers; this server takes {self._max_running:,}"
            raise ApiError(400, message, param="n", code="invalid_value")

    def _count(self, model: ModelName, prompts: Sequence[Prompt], streams: Sequence[GenerationStream]) -> None:
        self.metrics.tokens.labels(model, "prompt").inc(sum(len(prompt.ids) for prompt in prompts))
        for stream in streams:
            completion = stream.completion
            self.metrics.answers.labels(model, completion.finish_reason if completion else "cancelled").inc()
            self.metrics.tokens.labels(model, "completion").inc(completion.num_generated_tokens if completion else 0)

    # --- log probabilities ---

    def visible_logprobs(self, logprobs: Sequence[TokenLogprob]) -> list[TokenLogprob]:
        """Those of the tokens of the text: without the stop token."""
        stops = self.models.prompt_format.stop_ids
        return [one for one in logprobs if one.token not in stops]

    def chat_logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The log probabilities of a chat answer."""
        return {
            "content": [
                {
                    **self._token(one.token, one.logprob),
                    "top_logprobs": [self._token(token, logprob) for token, logprob in one.top],
                }
                for one in self.visible_logprobs(logprobs)
            ],
            "refusal": None,
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.texts.text(token), "logprob": logprob, "bytes": list(self.texts.token_bytes(token))}

    def completion_logprobs(self, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        """The log probabilities of a plain completion whose first token begins at the character `offset`."""
        visible = self.visible_logprobs(logprobs)
        texts = [self.texts.text(one.token) for one in visible]
        offsets = [offset + sum(map(len, texts[:index])) for index in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [one.logprob for one in visible],
            "top_logprobs": [{self.texts.text(token): value for token, value in one.top} for one in visible],
            "text_offset": offsets,
        }
