"""Running the server: the port, signals, a graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from pipelines.errors import MachineError, RunError
from pipelines.serving.app import SERVICE

POLL_INTERVAL = 0.05
BACKLOG = 512


def bind(host: str, port: int) -> socket.socket:
    """A socket on `host` and `port`, on which clients cannot connect yet. Raises RunError if it cannot be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise RunError(f"--host {host}: {getattr(error, 'strerror', None) or error}; write 127.0.0.1") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno in (98, 48, 10048):  # EADDRINUSE on Linux, macOS and Windows
            raise RunError(f"port {port} of {host} is in use; stop the other server, or write --port N") from None
        if isinstance(error, PermissionError):
            raise RunError(f"port {port} needs administrator rights; write a --port above 1023") from None
        raise RunError(f"--host {host} --port {port}: {error.strerror or error}") from None
    return bound


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address_of(bound: socket.socket) -> str:
    """The address of a bound socket as a URL."""
    host, port = bound.getsockname()[:2]
    host = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _BadRequests(logging.Filter):
    """Drops the log entries, with tracebacks, of bytes that are no HTTP request. They are answered with status 400."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, HttpProcessingError)


logger = logging.getLogger(__name__)
logger.addFilter(_BadRequests())


async def serve(
    app: web.Application, bound: socket.socket, started: Callable[[], None], note: Callable[[str], None]
) -> None:
    """Serves until SIGTERM or SIGINT; then new answers get 503 and running ones may finish within `stop_timeout`.

    started: called when clients can connect. note: called with a line about the stop. A second signal ends at once.
    """
    service = app[SERVICE]
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[None] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, None)
    runner = web.AppRunner(app, access_log=None, logger=logger, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.SockSite(runner, bound, backlog=BACKLOG)
        try:
            await site.start()
        except OSError as error:  # another server listens on the address that both have bound
            raise RunError(f"the port is in use ({error.strerror or error}); write --port N") from None
        started()
        await signals.get()
        service.is_stopping = True
        if service.num_running:
            note(f"Stopping: {service.num_running} running answers have {service.settings.stop_timeout:g} s to finish")
        deadline = time.monotonic() + service.settings.stop_timeout
        while service.num_running and time.monotonic() < deadline and signals.empty():
            await asyncio.sleep(POLL_INTERVAL)
        if service.num_running:
            note(f"{service.num_running} answers were cut off")
        else:
            await asyncio.sleep(POLL_INTERVAL)  # the last bytes of the answers
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        with contextlib.suppress(TimeoutError):
            await runner.cleanup()


def run_server(
    app: web.Application, bound: socket.socket, started: Callable[[], None], note: Callable[[str], None]
) -> None:
    """`serve` in an event loop of its own. Raises MachineError if the system refuses."""
    try:
        asyncio.run(serve(app, bound, started, note))
    except OSError as error:
        raise MachineError(f"the server failed: {error.strerror or error}") from error
