"""`alfine plan`: what a job will need, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from pipelines.checks.files import check_data_files
from pipelines.checks.hardware import check_hardware
from pipelines.commands.arguments import config_argument, overrides_argument
from pipelines.config.job import Job, load_job
from pipelines.config.optional_packages import installed_version
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.modeling.base_models import locate_model_errors
from pipelines.planning.advice import Edit
from pipelines.planning.duration import format_duration
from pipelines.planning.plan import Plan, make_plan
from pipelines.planning.summary import duration_line, memory_line, work_line
from pipelines.planning.target_hardware import TargetHardware, find_hardware
from pipelines.report.tables import Column, cell, print_table
from pipelines.storage.sizes import format_bytes

STAGE_NAMES = {
    "prepare": "prepare rows",
    "eval_base": "completions of the base",
    "eval_few_shot": "completions of the base with examples in its prompt",
    "eval_base_retention": "retention evals of the base",
    "train": "training",
    "eval_tuned": "completions of the tuned model",
    "eval_tuned_retention": "retention evals of the tuned model",
}


@click.command()
@config_argument
@overrides_argument
@click.option("--gpu", help="Plan for this GPU instead of this machine: t4, l4, a10, a100-40, h100, rtx4090, …")
@click.option("--calibrate", is_flag=True, help="Time a few steps and completions on this machine first.")
def plan(config: Path, overrides: tuple[str, ...], gpu: str | None, calibrate: bool) -> None:
    """Show what a job will need before any weight is loaded: rows, tokens, steps, memory by part, time by stage.

    Lengths come from a sample of the rows. The exit code is 3 if the job does not fit into memory.

    \b
    Example:
      alfine plan ludwig_configs/quickstart.yaml --gpu t4
    """
    quiet_libraries()
    if gpu is not None and calibrate:
        raise click.UsageError("--calibrate measures this machine, so it cannot be used with --gpu")
    job = load_job(config, overrides)
    check_data_files(job)
    if gpu is None and not calibrate:  # which loads the model, and warns itself
        for warning in check_hardware(job):
            click.echo(f"warning: {warning}", err=True)
    hardware = find_hardware(gpu, job.pipeline.hardware)
    with locate_model_errors(job, "base_model"):
        made = _calibrated_plan(job, hardware) if calibrate else make_plan(job, hardware)
    print_plan(made, Console(highlight=False))
    if not made.fits:
        raise click.exceptions.Exit(3)


def _calibrated_plan(job: Job, hardware: TargetHardware) -> Plan:
    # torch: 3 s that a plan without measurements does not need
    from pipelines.planning.calibration import measure_rates

    with ConsoleReporter().status("Timing steps and completions"):
        return make_plan(job, hardware, measure=measure_rates)


def print_plan(plan: Plan, console: Console) -> None:
    """Prints the summary, the tables of rows, memory and time, and the edits if the job does not fit."""
    for line in (work_line(plan), memory_line(plan), duration_line(plan)):
        console.print(Text(line))
    _print_tasks(plan, console)
    _print_memory(plan, console)
    _print_stages(plan, console)
    base = "in the cache" if plan.download == 0 else f"{format_bytes(plan.download or 0)} to download"
    console.print(Text(f"disk: up to {format_bytes(plan.disk)} in the folder of the run; base model {base}"))
    _print_edits(plan, console)


def _print_tasks(plan: Plan, console: Console) -> None:
    columns = [Column("task", words=True)]
    columns += [Column(name) for name in ("train", "validation", "test", "tokens per row", "longest", "supervised")]
    rows: list[list[str | Text]] = []
    for task in plan.workload.tasks:
        numbers = [f"{task.rows['train']:,}"]
        for split in ("validation", "test"):
            used, all_rows = task.evaluated[split], task.rows[split]
            numbers.append(f"{used:,}" if used == all_rows else f"{used:,} of {all_rows:,}")
        sampled = "~" if task.is_sampled else ""
        lengths = [f"{sampled}{task.tokens:,.0f}", f"{sampled}{task.longest:,}", f"{sampled}{task.supervised:,.0f}"]
        rows.append([cell(task.name), *numbers, *lengths])
    unit = "tokens" if plan.workload.counts_tokens else "tokens, estimated from characters"
    console.print(Text(f"\nRows and {unit} (~: of a sample)", style="italic"))
    print_table(columns, rows, console)
    for task in plan.workload.tasks:
        if task.skipped:
            console.print(
                Text(f"task {task.name}: {task.skipped} sampled rows cannot be used; `alfine check` says why")
            )
    for name, share in plan.too_long.items():
        refuses = plan.job.too_long(name) == "refuse"
        result = "the run refuses them: write too_long: drop, or truncate_prompt" if refuses else "they are left out"
        text = f"task {name}: {share:.1%} of the rows are longer than the limit of {plan.row_limit:,} tokens"
        console.print(Text(f"{text}; {result}", style="bold" if refuses else ""))


def _print_memory(plan: Plan, console: Console) -> None:
    place = f"Memory on {plan.hardware.name}, {plan.hardware.dtype}"
    _print_parts(f"\n{place}: training", plan.memory.training, console)
    _print_parts(f"\n{place}: completions", plan.memory.completions, console)


def _print_parts(title: str, parts: dict[str, float], console: Console) -> None:
    console.print(Text(title, style="italic"))
    rows: list[list[str | Text]] = [[name, format_bytes(size)] for name, size in parts.items() if size]
    rows.append([Text("together", style="bold"), format_bytes(sum(parts.values()))])
    print_table([Column("part", words=True), Column("size")], rows, console)


def _print_stages(plan: Plan, console: Console) -> None:
    how = "measured rates" if plan.duration.rates.is_measured else "rates from data sheets, within a factor of 2"
    console.print(Text(f"\nTime ({how})", style="italic"))
    stages: Iterable[tuple[str, float]] = plan.duration.stages.items()
    rows: list[list[str | Text]] = [[STAGE_NAMES[name], format_duration(value)] for name, value in stages if value]
    rows.append([Text("together", style="bold"), format_duration(plan.duration.total)])
    print_table([Column("stage", words=True), Column("time")], rows, console)


def _print_edits(plan: Plan, console: Console) -> None:
    if plan.fits:
        return
    if not plan.edits:
        console.print(Text("No edit that is known here makes it fit; use a smaller base_model.", style="bold"))
        return
    console.print(Text("\nWhat makes it fit, the largest effect first:", style="bold"))
    for edit in plan.edits:
        left_out = f"; leaves out {edit.left_out:.0%} of the rows" if edit.left_out else ""
        needs = "; requires the package bitsandbytes" if _needs_bitsandbytes(edit) else ""
        console.print(Text(f"  {' '.join(edit.overrides)}  ({format_bytes(edit.peak)}{left_out}{needs})"))


def _needs_bitsandbytes(edit: Edit) -> bool:
    keys = ("quantization.", "trainer.optimizer.type=paged")
    return any(override.startswith(keys) for override in edit.overrides) and not installed_version("bitsandbytes")
