"""`alfine publish`."""

from __future__ import annotations

from pathlib import Path

import click

from pipelines.commands.arguments import run_argument
from pipelines.commands.export import CHECK_FAILED, check_quantize, print_check
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.errors import RunError
from pipelines.exporting.export import DEFAULT_QUANTIZATION, TARGETS, ExportOptions
from pipelines.exporting.export import export as export_run
from pipelines.exporting.gguf import QUANTIZATIONS
from pipelines.exporting.publish import check_repository, prepare
from pipelines.exporting.publish import publish as push


@click.command()
@run_argument
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--to", "target", type=click.Choice(TARGETS), default="merged", show_default=True, help="What to publish."
)
@click.option(
    "--quantize",
    type=click.Choice(QUANTIZATIONS),
    help=f"Type of the weights in a GGUF file. [default: that of the export; {DEFAULT_QUANTIZATION} for a new one]",
)
@click.option(
    "--export", "folder", type=click.Path(path_type=Path), help="The export. [default: export/TARGET in the run]"
)
@click.option("--public", is_flag=True, help="Let everyone read it. [default: private]")
@click.option("--revision", metavar="BRANCH", help="The branch to push to. [default: main]")
@click.option("--dry-run", is_flag=True, help="Show the files; nothing is pushed.")
def publish(
    run: Path,
    repository: str,
    target: str,
    quantize: str | None,
    folder: Path | None,
    public: bool,
    revision: str | None,
    dry_run: bool,
) -> None:
    """Push an export with its model card to the Hugging Face Hub.

    The export is made and checked first if there is none. One that failed its check is not pushed. The repository is
    created if it does not exist, private unless --public is given. The token is that of huggingface_hub (HF_TOKEN).

    \b
    Examples:
      alfine publish runs/quickstart anna/reviews --dry-run
      alfine publish runs/quickstart anna/reviews --to gguf --public
    """
    quiet_libraries()
    check_repository(repository)
    check_quantize(target, quantize)
    reporter = ConsoleReporter()
    if folder is None:
        folder = run / "export" / target
        if not folder.exists():
            options = ExportOptions(target, quantize=quantize or DEFAULT_QUANTIZATION)
            record = export_run(run, options, folder, reporter)
            print_check(record)
            if record.check is not None and not record.check.passed:
                click.get_current_context().exit(CHECK_FAILED)
    publication = prepare(run, folder, repository, public, revision)
    if quantize is not None and publication.record.dtype != quantize:
        raise RunError(
            f"{folder} has the type {publication.record.dtype}, not {quantize}; export it again with --force"
        )
    for line in publication.lines():
        click.echo(line)
    if publication.record.check is None:
        reporter.warn(f"{folder} was not checked (--check-rows 0)")
    if dry_run:
        click.echo("dry run: nothing was pushed")
        return
    click.echo(f"published: {push(publication, reporter)}")
