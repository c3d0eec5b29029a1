"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Limits and access.

    Attributes:
        max_concurrency: answers that are generated at once.
        max_waiting: further answers that wait; beyond them requests get status 429.
        max_body: bytes of a request's body.
        api_key: required as `Authorization: Bearer KEY`; None for none.
        allowed_hosts: names in the Host header that requests may have besides IP addresses, in lower case; None for
            all. Without an API key it protects from DNS rebinding: a website whose name resolves to this server.
        allowed_origins: other websites whose pages may use the API (CORS).
        read_timeout: seconds for a request's body.
        write_timeout: seconds that a client may take to read a part of a stream.
        stop_timeout: seconds that running answers have to finish when the server is stopped.
    """

    max_concurrency: int = 32
    max_waiting: int = 128
    max_body: int = 1 << 20
    api_key: str | None = None
    allowed_hosts: frozenset[str] | None = None
    allowed_origins: frozenset[str] = frozenset()
    read_timeout: float = 30.0
    write_timeout: float = 60.0
    stop_timeout: float = 30.0


DEFAULT_SETTINGS = ServerSettings()
