"""Metrics in the format of Prometheus."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pipelines.inference.requests import RequestEngine
from pipelines.serving.errors import Handler

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Metrics:
    """The metrics of one server, in a registry of its own.

    Labels have few values: routes that exist, the two models, statuses.
    """

    def __init__(self, engine: RequestEngine) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry, "namespace": "alfine"}
        self.requests = Counter("requests", "HTTP requests.", ["route", "status"], **options)
        self.duration = Histogram(
            "request_seconds", "Seconds until a request is answered.", ["route"], buckets=SECONDS, **options
        )
        self.first_token = Histogram(
            "time_to_first_token_seconds",
            "Seconds from a request to the first token of an answer.",
            ["model"],
            buckets=SECONDS,
            **options,
        )
        self.answers = Counter("answers", "Answers, by how they ended.", ["model", "finish_reason"], **options)
        self.tokens = Counter("tokens", "Tokens of prompts and completions.", ["model", "kind"], **options)
        active = Gauge("active_answers", "Answers that are being generated.", **options)
        active.set_function(lambda: engine.num_active)
        waiting = Gauge("waiting_answers", "Answers that wait for a slot.", **options)
        waiting.set_function(lambda: engine.num_waiting)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Counts and times requests."""
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "other"
        started, status = time.perf_counter(), "disconnected"
        try:
            response = await handler(request)
            status = str(response.status)
            return response
        finally:
            self.requests.labels(route, status).inc()
            self.duration.labels(route).observe(time.perf_counter() - started)

    async def handle(self, request: web.Request) -> web.Response:
        """`GET /metrics`."""
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
