"""`alfine serve`."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.commands.arguments import run_argument
from pipelines.console.activity import HEARTBEAT
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.errors import ConfigError
from pipelines.prediction.models import tuned_job
from pipelines.registry import lazy_import
from pipelines.storage.run_folder import Run

if TYPE_CHECKING:
    from pipelines.inference import engine, run_models
    from pipelines.serving import app as serving_app
    from pipelines.serving import server, settings
else:  # torch and aiohttp: seconds that --help and an error in an option do not need
    engine, run_models = lazy_import("pipelines.inference.engine"), lazy_import("pipelines.inference.run_models")
    serving_app, server = lazy_import("pipelines.serving.app"), lazy_import("pipelines.serving.server")
    settings = lazy_import("pipelines.serving.settings")


@click.command()
@run_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 for a free one.")
@click.option("--max-concurrency", default=32, show_default=True, type=click.IntRange(1, 1024), help="Answers at once.")
@click.option(
    "--max-waiting", default=128, show_default=True, type=click.IntRange(0), help="Further answers that wait."
)
@click.option(
    "--max-context", type=click.IntRange(2), help="Tokens of prompt and answer. [default: the model's context]"
)
@click.option("--max-body", default=1 << 20, show_default=True, type=click.IntRange(1024), help="Bytes of a request.")
@click.option(
    "--stop-timeout", default=30.0, show_default=True, type=click.FloatRange(0), help="Seconds for running answers."
)
@click.option("--api-key-env", default="ALFINE_API_KEY", show_default=True, help="The variable with the API key.")
@click.option("--allow-origin", multiple=True, metavar="URL", help="A website whose pages may use the API (CORS).")
@click.option("--allow-host", multiple=True, metavar="NAME", help="A further name in the Host header.")
def serve(
    run: Path,
    host: str,
    port: int,
    max_concurrency: int,
    max_waiting: int,
    max_context: int | None,
    max_body: int,
    stop_timeout: float,
    api_key_env: str,
    allow_origin: tuple[str, ...],
    allow_host: tuple[str, ...],
) -> None:
    """Serve base and tuned model over an OpenAI-compatible HTTP API, with a web page that shows them side by side.

    The models are called `base` and `tuned`. If the variable ALFINE_API_KEY is set, requests need that key. Ctrl-C
    lets running answers finish.

    \b
    Example:
      alfine serve runs/quickstart --port 8000
    """
    quiet_libraries()
    reporter = ConsoleReporter()
    opened = Run.open(run)
    job = tuned_job(opened)
    key = _api_key(api_key_env)
    for origin in allow_origin:
        _check_origin(origin)
    bound = server.bind(host, port)
    with bound:
        names = frozenset(name.lower() for name in ("localhost", socket.gethostname(), *allow_host))
        options = settings.ServerSettings(
            max_concurrency=max_concurrency,
            max_waiting=max_waiting,
            max_body=max_body,
            api_key=key,
            allowed_hosts=None if key is not None and not allow_host else names,
            allowed_origins=frozenset(allow_origin),
            stop_timeout=stop_timeout,
        )
        if key is None and not server.is_loopback(host):
            reporter.warn(f"everyone who can reach {host} can use the server; set {api_key_env} to require an API key")
        with reporter.status("Loading the models"):
            models = run_models.RunModels.load(opened, job)
            running = engine.load_engine(models, max_slots=max_concurrency, max_context=max_context)
        with running, HEARTBEAT.paused():
            app = serving_app.create_app(models, running, options)
            if ignored := app[serving_app.SERVICE].defaults.ignored:
                reporter.warn(f"generation: {', '.join(ignored)} has no effect in serve")
            address = server.address_of(bound)
            server.run_server(
                app, bound, lambda: reporter.note(f"Serving base and tuned at {address} (Ctrl-C stops)"), reporter.note
            )


def _api_key(variable: str) -> str | None:
    key = os.environ.get(variable)
    if key is None:
        return None
    if not key.strip() or not key.isascii() or not key.isprintable():
        raise ConfigError(f"the variable {variable} holds no API key; set it to letters and digits, or unset it")
    return key.strip()


def _check_origin(origin: str) -> None:
    scheme, separator, rest = origin.partition("://")
    if scheme not in ("http", "https") or not separator or not rest or "/" in rest:
        raise ConfigError(f"--allow-origin {origin}: write an origin, as in https://example.org")
