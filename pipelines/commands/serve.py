"""`alfine serve`."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.commands.arguments import run_argument
from pipelines.config.job import Job
from pipelines.console.activity import HEARTBEAT
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.errors import ConfigError, RunError
from pipelines.prediction.models import tuned_job
from pipelines.registry import lazy_import
from pipelines.storage.run_folder import Run

if TYPE_CHECKING:
    from pipelines.inference import engine, run_models
    from pipelines.inference.requests import RequestEngine
    from pipelines.inference.run_models import RunFormat
    from pipelines.serving import app as serving_app
    from pipelines.serving import ray_replicas, server, settings
else:  # torch and aiohttp: seconds that --help and an error in an option do not need
    engine, run_models = lazy_import("pipelines.inference.engine"), lazy_import("pipelines.inference.run_models")
    serving_app, server = lazy_import("pipelines.serving.app"), lazy_import("pipelines.serving.server")
    settings = lazy_import("pipelines.serving.settings")
    ray_replicas = lazy_import("pipelines.serving.ray_replicas")


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
@click.option("--ray", is_flag=True, help="Answer with replicas on Ray Serve, in several processes or machines.")
@click.option(
    "--replicas",
    type=click.IntRange(1),
    help="Replicas of --ray. [default: backend.trainer.num_workers, else one per GPU or machine]",
)
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
    ray: bool,
    replicas: int | None,
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
    if replicas is not None and not ray:
        raise RunError("--replicas applies to --ray; add --ray")
    opened = Run.open(run)
    job = tuned_job(opened)
    key = _api_key(api_key_env)
    for origin in allow_origin:
        _check_origin(origin)
    bound = server.bind(host, port)
    with bound:
        if key is None and not server.is_loopback(host):
            reporter.warn(f"everyone who can reach {host} can use the server; set {api_key_env} to require an API key")
        num_replicas = (replicas or 0) if ray else None
        running = _running_engine(opened, job, num_replicas, max_concurrency, max_context, reporter)
        with running as (run_format, answering), HEARTBEAT.paused():
            names = frozenset(name.lower() for name in ("localhost", socket.gethostname(), *allow_host))
            options = settings.ServerSettings(
                max_concurrency=answering.max_slots,
                max_waiting=max_waiting,
                max_body=max_body,
                api_key=key,
                allowed_hosts=None if key is not None and not allow_host else names,
                allowed_origins=frozenset(allow_origin),
                stop_timeout=stop_timeout,
            )
            app = serving_app.create_app(run_format, answering, options)
            if ignored := app[serving_app.SERVICE].defaults.ignored:
                reporter.warn(f"generation: {', '.join(ignored)} has no effect in serve")
            address = server.address_of(bound)
            server.run_server(
                app, bound, lambda: reporter.note(f"Serving base and tuned at {address} (Ctrl-C stops)"), reporter.note
            )


@contextlib.contextmanager
def _running_engine(
    run: Run, job: Job, num_replicas: int | None, max_slots: int, max_context: int | None, reporter: ConsoleReporter
) -> Iterator[tuple[RunFormat, RequestEngine]]:
    """Yields the format of the prompts and what answers them: an engine in this process, or replicas on Ray.

    num_replicas: None for this process; see `ray_engine`.
    """
    with contextlib.ExitStack() as stack:
        if num_replicas is None:
            with reporter.status("Loading the models"):
                models = run_models.RunModels.load(run, job)
                local = stack.enter_context(engine.load_engine(models, max_slots=max_slots, max_context=max_context))
            yield models, local
        else:
            with reporter.status("Starting replicas on Ray"):
                run_format = run_models.RunFormat.load(run, job)
                replicas = ray_replicas.ray_engine(job, run, num_replicas, max_slots, max_context)
                remote = stack.enter_context(replicas)
            yield run_format, remote


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
