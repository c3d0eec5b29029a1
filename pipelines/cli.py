"""The command line. Only this module prints errors, one line each; the exit code is 2 for errors of the user."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from pipelines.console.activity import HEARTBEAT, BestEffortStream, supports_progress_bars
from pipelines.console.plain_text import printable, replace_unencodable
from pipelines.errors import AlfineError, DataError
from pipelines.storage.cache import ensure_home
from pipelines.version import __version__

VERBS: Mapping[str, str] = {
    "init": "Write a job for a data file.",
    "check": "Check a YAML file and its data; nothing is trained.",
    "preview": "Show tokenized rows, sequence lengths and learning rates.",
    "plan": "Show what a job will need before any weight is loaded.",
    "run": "Fine-tune and compare base and tuned.",
    "predict": "Complete new rows with a tuned model.",
    "chat": "Talk to base and tuned model in the terminal.",
    "export": "Write the tuned model for other programs.",
    "publish": "Push an export with its model card to the Hugging Face Hub.",
    "serve": "Serve base and tuned model over an OpenAI-compatible HTTP API.",
    "report": "Show the result of a run and write its report files again.",
    "compare": "Compare two models on the same prompts.",
    "runs": "List runs and their results.",
    "examples": "Page through the examples of a run.",
    "sweep": "Compare forgetting strategies on the same data, seeds and budget.",
    "models": "List the base models that need no model hub.",
    "import": "Write a job from a config of Ludwig, LLaMA-Factory or axolotl.",
    "schema": "Write the JSON Schema of a config, for editors.",
}
"""The verbs in the order of `alfine --help`, each with the summary that its help begins with. The command of a verb has
the verb's name in the module `pipelines.commands.VERB`, which is imported when the verb is used; that of `import` is
`import_config`."""

COMMAND_SYNONYMS = {
    "show": "examples",
    "bakeoff": "sweep",
    "list": "runs",
    "ls": "runs",
    "train": "run",
    "finetune": "run",
    "validate": "check",
    "generate": "predict",
    "talk": "chat",
    "repl": "chat",
    "merge": "export",
    "save": "export",
    "push": "publish",
    "upload": "publish",
    "evaluate": "report",
    "convert": "import",
}
"""Words that are not verbs, with the verb of the same meaning."""

MAX_NOTED_FILES = 3
"""Data files of one error whose notes are printed."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, as Click documents it ("Lazily Loading Subcommands")."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        name = "import_config" if cmd_name == "import" else cmd_name  # `import` cannot be a name in Python
        command: click.Command = getattr(importlib.import_module(f"pipelines.commands.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the verbs with their summaries; Click's own would import every command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises AlfineError, with the verb that may be meant, for a word that is not a verb."""
        word = args[0]
        if word not in VERBS and not word.startswith("-"):
            close = difflib.get_close_matches(word, VERBS, n=1, cutoff=0.5)
            meant = COMMAND_SYNONYMS.get(word) or (close[0] if close else None)
            hint = f"did you mean {meant}?" if meant else f"the commands are {', '.join(VERBS)}"
            raise AlfineError(f"no such command {word!r}; {hint}")
        return super().resolve_command(ctx, args)


class ErrorHandlingGroup(LazyGroup):
    """Prints an AlfineError as one line per problem on stderr and exits with its code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            replace_unencodable(stream)
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        # Cluster managers stop a process with SIGTERM; handled as Ctrl-C, so that files are closed and removed.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            ensure_home()
            with _heartbeat():
                return super().invoke(ctx)
        except AlfineError as error:
            for problem in error.problems:
                click.echo(f"error: {problem}", err=True)
            for note in _notes_on_files(error):
                click.echo(f"note: {note}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("\ninterrupted; run the same command again to resume", err=True)
            ctx.exit(130)


def _notes_on_files(error: AlfineError) -> list[str]:
    """What was detected in the data files that an error is about, such as the sheet or the delimiter: it may be the
    cause."""
    if not isinstance(error, DataError):
        return []
    # Most commands end without an error, and some read no data file.
    from pipelines.data.readers import notes_on_file

    files = dict.fromkeys(problem.file for problem in error.problems if problem.file is not None)
    return [printable(note) for file in list(files)[:MAX_NOTED_FILES] for note in notes_on_file(file)]


@contextlib.contextmanager
def _heartbeat() -> Iterator[None]:
    """Writes a line after each 30 s of silence until the command ends, if no terminal shows progress bars."""
    if supports_progress_bars(sys.stderr):
        yield
        return
    with HEARTBEAT.running(BestEffortStream(sys.stderr).write_line):
        yield


@click.group(cls=ErrorHandlingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="alfine")
def main() -> None:
    """Fine-tune a language model from one YAML file and measure what it learned and forgot.

    \b
    Example:
      alfine run ludwig_configs/quickstart.yaml
    """


if __name__ == "__main__":
    sys.exit(main())
