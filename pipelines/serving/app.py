"""The application: routes, access, limits and metrics around one generation engine."""

from __future__ import annotations

from aiohttp import web

from pipelines.inference.requests import RequestEngine
from pipelines.inference.run_models import RunFormat
from pipelines.serving.access import access_middleware, add_cors_headers
from pipelines.serving.answers import AnswerService
from pipelines.serving.errors import disconnect_middleware, error_middleware
from pipelines.serving.metrics import Metrics
from pipelines.serving.openai_api import OpenAiApi
from pipelines.serving.page_routes import add_page_routes
from pipelines.serving.settings import DEFAULT_SETTINGS, ServerSettings

SERVICE: web.AppKey[AnswerService] = web.AppKey("service", AnswerService)


def create_app(
    models: RunFormat, engine: RequestEngine, settings: ServerSettings = DEFAULT_SETTINGS
) -> web.Application:
    """The application that answers for the models of a run.

    `app[SERVICE]` has the service, whose `is_stopping` refuses new answers.
    """
    metrics = Metrics(engine)
    service = AnswerService(models, engine, settings, metrics)
    app = web.Application(
        middlewares=[disconnect_middleware, metrics.middleware, error_middleware, access_middleware(settings)],
        client_max_size=settings.max_body,
    )
    app[SERVICE] = service
    app.on_response_prepare.append(add_cors_headers(settings))
    OpenAiApi(service).add_routes(app)
    app.router.add_get("/health", _health)
    app.router.add_get("/ready", _ready)
    app.router.add_get("/metrics", metrics.handle)
    add_page_routes(app, models.run, models.job)
    return app


async def _health(request: web.Request) -> web.Response:
    """Whether the process runs."""
    return web.json_response({"status": "ok"})


async def _ready(request: web.Request) -> web.Response:
    """Whether new answers are taken: 503 while the server stops, and while nothing answers."""
    service = request.app[SERVICE]
    if service.is_stopping:
        return web.json_response({"status": "stopping"}, status=503)
    if (problem := service.engine.problem) is not None:
        return web.json_response({"status": "unavailable", "reason": problem}, status=503)
    return web.json_response({"status": "ready"})
