"""Errors of the HTTP API, in the format of OpenAI's: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from pipelines.errors import AlfineError, ConfigError, DataError, UnavailableError
from pipelines.storage.strict_json import dump

logger = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RETRY_AFTER = {"Retry-After": "2"}
"""The header with the seconds after which a client may try again."""
CLIENT_CLOSED_REQUEST = 499
"""The status that nginx logs for a client that left before the answer."""
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: the HTTP status.
        param: the key of the body that is wrong.
        code: a name of the kind of error, for programs.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def to_dict(self) -> dict[str, dict[str, str | None]]:
        """The body of the response."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def to_response(self) -> web.Response:
        return web.json_response(
            self.to_dict(), status=self.status, headers={**HEADERS, **self.headers}, dumps=_dump_ascii
        )


def _dump_ascii(value: object) -> str:
    return dump(value, ascii_only=True)


def as_api_error(error: AlfineError) -> ApiError:
    """An error of the library: what the request says is wrong, nothing can answer at present, or the engine failed."""
    message = error.problems[0].message
    if isinstance(error, UnavailableError):
        return ApiError(503, message, code="unavailable", headers=RETRY_AFTER)
    is_request = isinstance(error, DataError | ConfigError)
    return ApiError(400 if is_request else 500, message, code=None if is_request else "engine_error")


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers every error as JSON. Errors after the first byte of a stream are sent by the stream itself."""
    try:
        return await handler(request)
    except ApiError as error:
        return error.to_response()
    except web.HTTPRequestEntityTooLarge:
        limit = request.app._client_max_size
        return ApiError(413, f"the body has more than {limit:,} bytes", code="request_too_large").to_response()
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.method} is not supported here; use {allowed}"
        return ApiError(405, message, headers={"Allow": allowed}).to_response()
    except web.HTTPNotFound:
        return ApiError(404, f"there is no {request.path!r:.200} here; see /v1/models").to_response()
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return ApiError(error.status, error.reason).to_response()
    except AlfineError as error:
        return as_api_error(error).to_response()
    except Exception as error:
        if isinstance(error, ConnectionError) and has_left(request):
            raise
        logger.exception("%s %s failed", request.method, request.path)
        return ApiError(500, "the server failed; its log says why").to_response()


def has_left(request: web.Request) -> bool:
    """Whether the client has closed its connection."""
    return request.transport is None or request.transport.is_closing()


@web.middleware
async def disconnect_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Ends the requests of clients that have left. It is outside all others: they see the ConnectionError of a write.

    aiohttp cancels the handler when a connection is lost, but a part of a stream may be written just before that. It
    would log such a write as an error of the server, with a traceback.
    """
    try:
        return await handler(request)
    except ConnectionError:
        return web.Response(status=CLIENT_CLOSED_REQUEST)  # nobody receives it
