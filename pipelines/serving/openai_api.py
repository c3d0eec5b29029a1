"""`/v1/models`, `/v1/chat/completions` and `/v1/completions`, streamed or not."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

from pipelines.errors import AlfineError
from pipelines.inference.requests import GenerationStream, TextDelta
from pipelines.inference.run_models import MODEL_NAMES
from pipelines.serving.answers import Answers, AnswerService
from pipelines.serving.bodies import ChatBody, CompletionBody, read_body
from pipelines.serving.errors import HEADERS, ApiError, as_api_error

STREAM_HEADERS = {**HEADERS, "Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
CREATED = int(time.time())

Choice = dict[str, Any]


class OpenAiApi:
    """The handlers of the API."""

    def __init__(self, service: AnswerService) -> None:
        self.service = service

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_get("/v1/models/{name}", self.describe_model)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)

    async def list_models(self, request: web.Request) -> web.Response:
        return _json({"object": "list", "data": [self._model(name) for name in MODEL_NAMES]})

    async def describe_model(self, request: web.Request) -> web.Response:
        return _json(self._model(self.service.check_model(request.match_info["name"])))

    def _model(self, name: str) -> dict[str, Any]:
        models = self.service.models
        return {
            "id": name,
            "object": "model",
            "created": CREATED,
            "owned_by": "alfine",
            "root": models.job.base_model if name == "base" else str(models.run.name),
            "max_model_len": self.service.engine.context_length,
        }

    # --- chat ---

    async def chat(self, request: web.Request) -> web.StreamResponse:
        service = self.service
        body = await read_body(request, ChatBody, service.settings.read_timeout)
        model = service.check_model(body.model)
        _check_options(body)
        prompt = await service.chat_prompt(body)
        frame = _frame("chatcmpl", "chat.completion", model)
        async with service.answers(body, model, [prompt], "messages" if body.row is None else "row") as answers:
            if body.stream:
                return await self._stream(
                    request, body, answers, {**frame, "object": "chat.completion.chunk"}, _chat_chunk
                )
            choices = [self._chat_choice(stream, index) async for index, stream in self._finished(answers)]
            return _json({**frame, "choices": choices, "usage": answers.usage(), "system_fingerprint": None})

    def _chat_choice(self, stream: GenerationStream, index: int) -> Choice:
        completion = stream.completion
        assert completion is not None
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        if completion.reasoning is not None:
            message["reasoning_content"] = completion.reasoning
        logprobs = None if stream.request.num_logprobs is None else self.service.chat_logprobs(stream.logprobs)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": completion.finish_reason}

    # --- plain completions ---

    async def complete(self, request: web.Request) -> web.StreamResponse:
        service = self.service
        body = await read_body(request, CompletionBody, service.settings.read_timeout)
        model = service.check_model(body.model)
        _check_options(body)
        prompts = await service.completion_prompts(body)
        if not prompts:
            raise ApiError(400, "prompt is an empty list", param="prompt", code="invalid_prompt")
        frame = _frame("cmpl", "text_completion", model)
        async with service.answers(body, model, prompts, "prompt") as answers:
            if body.stream:
                return await self._stream(request, body, answers, frame, _completion_chunk)
            choices = [self._completion_choice(stream, index) async for index, stream in self._finished(answers)]
            return _json({**frame, "choices": choices, "usage": answers.usage(), "system_fingerprint": None})

    def _completion_choice(self, stream: GenerationStream, index: int) -> Choice:
        completion = stream.completion
        assert completion is not None
        logprobs = None if stream.request.num_logprobs is None else self.service.completion_logprobs(stream.logprobs, 0)
        choice = {"index": index, "text": completion.text, "logprobs": logprobs}
        if completion.reasoning is not None:
            choice["reasoning_content"] = completion.reasoning
        return {**choice, "finish_reason": completion.finish_reason}

    # --- both ---

    async def _finished(self, answers: Answers) -> AsyncIterator[tuple[int, GenerationStream]]:
        """Waits for all answers."""
        is_first = True
        async for _ in answers.deltas():
            if is_first:
                self._observe_first(answers)
                is_first = False
        for index, stream in enumerate(answers.streams):
            yield index, stream

    def _observe_first(self, answers: Answers) -> None:
        self.service.metrics.first_token.labels(answers.model).observe(time.perf_counter() - answers.started)

    async def _stream(
        self,
        request: web.Request,
        body: ChatBody | CompletionBody,
        answers: Answers,
        frame: dict[str, Any],
        chunk: Callable[[AnswerService, TextDelta, int, bool], Choice],
    ) -> web.StreamResponse:
        """Sends the answers as server-sent events. A client that does not read is disconnected after a while."""
        response = web.StreamResponse(headers=STREAM_HEADERS)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        usage: dict[str, Any] = {"usage": None} if with_usage else {}
        begun: dict[int, int] = {}

        async def send(text: str) -> None:
            async with asyncio.timeout(self.service.settings.write_timeout):
                await response.write(f"data: {text}\n\n".encode())

        async def send_answers() -> None:
            await response.prepare(request)
            async for index, delta in answers.deltas():
                if not begun:
                    self._observe_first(answers)
                choice = chunk(self.service, delta, begun.get(index, -1), body.num_logprobs is not None)
                begun[index] = max(0, begun.get(index, 0)) + len(delta.text)
                choice = {"index": index, **choice, "finish_reason": delta.finish_reason}
                await send(_dump({**frame, "choices": [choice], **usage}))
            if with_usage:
                await send(_dump({**frame, "choices": [], "usage": answers.usage()}))
            await send("[DONE]")

        try:
            try:
                await send_answers()
            except AlfineError as error:  # the engine failed: the status has been sent, so the stream says it
                await send(_dump(as_api_error(error).to_dict()))
            await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response


def _chat_chunk(service: AnswerService, delta: TextDelta, sent: int, with_logprobs: bool) -> Choice:
    """A part of a chat answer, of which `sent` characters have been sent; -1 for the first part."""
    message: dict[str, Any] = {"role": "assistant", "content": ""} if sent < 0 else {}
    if delta.text:
        message["content"] = delta.text
    if delta.reasoning:
        message["reasoning_content"] = delta.reasoning
    return {"delta": message, "logprobs": service.chat_logprobs(delta.logprobs) if with_logprobs else None}


def _completion_chunk(service: AnswerService, delta: TextDelta, sent: int, with_logprobs: bool) -> Choice:
    logprobs = service.completion_logprobs(delta.logprobs, max(0, sent)) if with_logprobs else None
    choice: Choice = {"text": delta.text, "logprobs": logprobs}
    return {**choice, "reasoning_content": delta.reasoning} if delta.reasoning else choice


def _check_options(body: ChatBody | CompletionBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options", code="invalid_value")
    if isinstance(body, ChatBody) and body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    if isinstance(body, ChatBody) and body.max_tokens is not None and body.max_completion_tokens is not None:
        message = "max_tokens is the old name of max_completion_tokens; send one of them"
        raise ApiError(400, message, param="max_tokens", code="invalid_value")


def _frame(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _dump(value: Any) -> str:
    # ASCII only, so that no program splits a line at a character that ends lines in Unicode.
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _json(value: Any) -> web.Response:
    return web.json_response(value, headers=HEADERS, dumps=_dump)
