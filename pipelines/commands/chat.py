"""`alfine chat`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pipelines.commands.arguments import run_argument
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.errors import ConfigError
from pipelines.prediction.models import tuned_job
from pipelines.registry import lazy_import
from pipelines.storage.run_folder import Run

if TYPE_CHECKING:
    from pipelines.chat import commands as chat_commands
    from pipelines.chat import loop, session
    from pipelines.inference import engine, run_models, sampling_defaults
else:  # torch: seconds that --help does not need
    chat_commands, loop, session = (lazy_import(f"pipelines.chat.{name}") for name in ("commands", "loop", "session"))
    engine, run_models, sampling_defaults = (
        lazy_import(f"pipelines.inference.{name}") for name in ("engine", "run_models", "sampling_defaults")
    )


@click.command()
@run_argument
@click.option("--model", type=click.Choice(["base", "tuned", "both"]), default="both", show_default=True)
@click.option("--task", help="Begin with the template of this task.")
@click.option("--system", help="The system prompt. [default: that of the run]")
@click.option(
    "--temperature", help="0 for the most likely token at each step. [default: as the run's section generation]"
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Tokens of an answer. [default: the run's limit]")
@click.option("--seed", type=int, help="Draw the same answers each time.")
def chat(
    run: Path,
    model: str,
    task: str | None,
    system: str | None,
    temperature: str | None,
    max_new_tokens: int | None,
    seed: int | None,
) -> None:
    """Talk to base and tuned model in the terminal, both answers side by side.

    Lines that begin with a slash are commands; /help lists them. Without a terminal each line of the standard input is
    a prompt or a command.

    \b
    Example:
      alfine chat runs/quickstart
      echo "Name a colour." | alfine chat runs/quickstart
    """
    quiet_libraries()
    opened = Run.open(run)
    job = tuned_job(opened)
    defaults = sampling_defaults.SamplingDefaults.from_generation(job.generation)
    sampling: dict[str, Any] = defaults.settings(
        temperature=None if temperature is None else chat_commands.parse_temperature(temperature)
    )
    if task is not None and task not in job.pipeline.tasks:
        raise ConfigError(f"{run} has no task {task!r}; it has {', '.join(job.pipeline.tasks)}")
    names = tuple(name for name in run_models.MODEL_NAMES if model in (name, "both"))
    settings = session.ChatSettings(names, system, max_new_tokens, seed=seed, **sampling)
    # As Ctrl-C, SIGTERM would only stop an answer.
    signal.signal(signal.SIGTERM, _terminate)
    reporter = ConsoleReporter()
    for key in defaults.ignored:
        reporter.note(f"generation.{key} has no effect in chat")
    with reporter.status("Loading both models"):
        models = run_models.RunModels.load(opened, job)
    models.pack_weights()
    with engine.GenerationEngine(models) as running:
        chat_session = session.ChatSession(models, running, settings)
        code = loop.run_chat(chat_session, session.greeting(chat_session), task)
    sys.exit(code)


def _terminate(*_: object) -> NoReturn:
    sys.exit(143)
