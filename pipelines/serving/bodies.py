"""The bodies of OpenAI's API as far as they are supported; every other key is an error that names it."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, ClassVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipelines.config.messages import did_you_mean
from pipelines.serving.errors import ApiError
from pipelines.storage.strict_json import StrictJsonError, parse

MAX_CHOICES = 16
"""Answers to one request."""
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "parallel_tool_calls": (True, False),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters of OpenAI's API that are not supported, with the values that ask for nothing. None is one, too."""
_WITHOUT_EFFECT = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
"""Keys that do not change answers: they label requests for OpenAI's own accounting."""

_SEVERAL_TYPES = {
    "prompt": "a text, a list of texts, a list of tokens, or a list of such lists",
    "stop": f"a text, or a list of up to {MAX_STOPS} texts",
}
"""What keys may hold that take values of several types: the first problem of pydantic is that of the first type."""

Texts = Annotated[list[str], Field(max_length=MAX_STOPS)]


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: bool | None = None
    """OpenAI pads the parts of its streams with it; here it has no effect."""


class GenerationBody(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="forbid", strict=True)
    endpoint: ClassVar[str]
    model: str
    temperature: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Texts | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return tuple([self.stop] if isinstance(self.stop, str) else self.stop or ())

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: Any) -> Any:
        if value == "" or (isinstance(value, list) and "" in value):
            raise ValueError("an empty text cannot end an answer")
        return value


class ChatBody(GenerationBody):
    """The body of `/v1/chat/completions`: `task` and `row`, or `messages`, which may continue those of a `task`."""

    endpoint: ClassVar[str] = "/v1/chat/completions"
    messages: list[dict[str, Any]] | None = None
    task: str | None = None
    row: dict[str, Any] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(GenerationBody):
    """The body of `/v1/completions`: texts or tokens to continue, without a chat template."""

    endpoint: ClassVar[str] = "/v1/completions"
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


async def read_body[B: GenerationBody](request: web.Request, body_type: type[B], timeout: float) -> B:
    """The body of a request. Raises ApiError for one that is no JSON, or has keys or values that are not supported."""
    if request.content_type != "application/json":
        raise ApiError(415, "send the header Content-Type: application/json")
    try:
        async with asyncio.timeout(timeout):
            content = await request.read()
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {timeout:g} s", headers={"Connection": "close"}) from None
    try:
        value = parse(content.decode())
    except StrictJsonError as error:
        raise ApiError(400, f"the body {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is no JSON object")
    return parse_body(value, body_type)


def parse_body[B: GenerationBody](value: dict[str, Any], body_type: type[B]) -> B:
    """The body, from its JSON value. Raises ApiError."""
    supported = dict[str, Any]()
    for key, given in value.items():
        if key in body_type.model_fields:
            supported[key] = given
        elif given is not None and key not in _WITHOUT_EFFECT:
            _check_unsupported(key, given, body_type)
    try:
        return body_type.model_validate(supported)
    except ValidationError as error:
        raise _invalid(error) from None


def _check_unsupported(key: str, given: Any, body_type: type[GenerationBody]) -> None:
    """Raises ApiError for a parameter that would change the answer."""
    if key not in _NEUTRAL:
        similar = did_you_mean(key, body_type.model_fields)
        advice = f"; did you mean {similar}?" if similar else ""
        raise ApiError(
            400, f"{body_type.endpoint} has no parameter {key!r:.80}{advice}", param=key[:80], code="unknown_parameter"
        )
    neutral = _NEUTRAL[key]
    if any(given == value and isinstance(given, bool) == isinstance(value, bool) for value in neutral):
        return
    allowed = f" other than {' or '.join(json.dumps(value) for value in neutral)}" if neutral else ""
    message = f"{key}{allowed} is not supported; leave it out"
    raise ApiError(400, message, param=key, code="unsupported_parameter")


def _invalid(error: ValidationError) -> ApiError:
    """The first problem of a body."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = [part for part in first["loc"] if not str(part).startswith(("function-", "list[", "constrained-", "str"))]
    key = str(first["loc"][0]) if first["loc"] else None
    name = ".".join(map(str, path[:1])) or "the body"
    if first["type"] == "missing":
        return ApiError(400, f"{name} is missing", param=key, code="missing_required_parameter")
    if key in _SEVERAL_TYPES and first["type"] != "value_error" and first["type"] != "too_long":
        return ApiError(400, f"{name} must be {_SEVERAL_TYPES[key]}", param=key, code="invalid_value")
    message = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{name}: {message[:1].lower()}{message[1:]}", param=key, code="invalid_value")
