"""Who may use the server: API key, names of the host (DNS rebinding), other websites (CORS)."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from aiohttp import web

from pipelines.serving.errors import ApiError, Handler
from pipelines.serving.page_routes import is_public
from pipelines.serving.settings import ServerSettings

PUBLIC_PATHS = ("/health", "/ready")
"""Answered without an API key, as are the files of the page: they say nothing about the run."""


def access_middleware(settings: ServerSettings):  # type: ignore[no-untyped-def]  # aiohttp's own type is private
    """The middleware that refuses requests without access. It is inside the one that answers errors."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        _check_host(request, settings)
        origin = _check_origin(request, settings)
        if origin and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return web.Response(status=204, headers=_cors_headers(origin))
        if settings.api_key is not None and not (request.path in PUBLIC_PATHS or is_public(request.path)):
            _check_key(request, settings.api_key)
        return await handler(request)

    return check


def add_cors_headers(settings: ServerSettings):  # type: ignore[no-untyped-def]
    """The hook of `on_response_prepare` that lets the pages of allowed websites read responses, errors included."""

    async def prepare(request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if origin in settings.allowed_origins:
            response.headers.update(_cors_headers(origin))

    return prepare


def _check_host(request: web.Request, settings: ServerSettings) -> None:
    if settings.allowed_hosts is None:
        return
    name = host_name(request.headers.get("Host", ""))
    if name.lower() not in settings.allowed_hosts and not is_address(name):
        raise ApiError(403, f"the host {name!r:.80} is not allowed; start the server with --allow-host", code="host")


def _check_origin(request: web.Request, settings: ServerSettings) -> str | None:
    """The origin, if it is another website that is allowed. Browsers send it with requests of other websites."""
    origin = request.headers.get("Origin")
    if origin is None or origin == f"{request.scheme}://{request.headers.get('Host', '')}":
        return None
    if origin in settings.allowed_origins:
        return origin
    # Behind a proxy that ends TLS, the scheme of the page is another one.
    if urlsplit(origin).netloc == request.headers.get("Host"):
        return None
    raise ApiError(
        403, f"the website {origin!r:.80} is not allowed; start the server with --allow-origin", code="origin"
    )


def host_name(host: str) -> str:
    """The name in a Host header, without the port: `[::1]:8000` → `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def is_address(name: str) -> bool:
    """Whether a name is an IP address. DNS rebinding needs a name of the attacker's, so an address is safe."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_key(request: web.Request, key: str) -> None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(
        given.strip().encode("utf-8", "surrogateescape"), key.encode()
    ):
        message = "wrong API key" if given else "this server needs an API key: Authorization: Bearer KEY"
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _cors_headers(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
