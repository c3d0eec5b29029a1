"""`report.html`: one file that needs no network, made from the template, style sheet and scripts in this folder."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipelines.report import formatting, plots
from pipelines.report.columns import retention_columns, task_columns
from pipelines.report.few_shot import FEW_SHOT_NOTE, few_shot_name, worth_of_tuning
from pipelines.report.results import Analysis
from pipelines.report.summaries import (
    backward_transfer_summary,
    headline,
    retention_summary,
    task_caveats,
    training_summary,
)

HERE = Path(__file__).parent

SCRIPTS = ("page.js", "examples.js", "differences.js", "copying.js", "rating.js")
"""The scripts of the page. The first has what the others share."""

MAX_EXAMPLES = 1000
"""Examples on the page, the largest regressions first. All examples are in report.json."""

MAX_CHARACTERS = 4000
"""Characters of one text on the page. The whole text is in report.json."""


def render(analysis: Analysis) -> str:
    """The page.

    jinja2 escapes everything from the run. Only the style sheet, the scripts and the figures are inserted as they are.
    """
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    transfer = analysis.backward_transfer
    return (
        page_environment()
        .get_template("template.html.jinja")
        .render(
            analysis=analysis,
            tasks=analysis.tasks,
            manifest=analysis.manifest,
            training=analysis.training,
            plan=analysis.manifest.plan,
            headline=headline(analysis),
            worth_of_tuning=worth_of_tuning(analysis),
            few_shot_name=few_shot_name(analysis.tasks.values()),
            few_shot_note=FEW_SHOT_NOTE,
            task_columns=task_columns(analysis.models, analysis.tasks.values()),
            retention_columns=retention_columns(analysis.models),
            retention_summary=retention_summary(analysis),
            training_summary=training_summary(analysis),
            backward_transfer_summary=backward_transfer_summary(transfer) if transfer else "",
            examples=analysis.examples_by_regression[:MAX_EXAMPLES],
            max_characters=MAX_CHARACTERS,
            config=yaml.safe_dump(analysis.config, sort_keys=False, allow_unicode=True, width=100),
            dot_plot=Markup(plots.dot_plot(list(analysis.tasks.values()))),
            retention_curve=Markup(plots.retention_curve(analysis)),
            loss_curve=Markup(plots.loss_curve(analysis.training)),
            style=style_sheet(),
            script=Markup(script),
            script_hash=_sha256(script),
        )
    )


def page_environment() -> Environment:
    """The jinja2 environment of the pages, with the functions of `formatting` as filters."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "caveats": task_caveats,
        "change_unit": formatting.change_unit,
        "count": formatting.count,
        "duration": formatting.duration,
        "heading": formatting.heading,
        "interval": formatting.interval,
        "no_answer": formatting.no_answer,
        "number": formatting.number,
        "printable": formatting.printable,
        "score": formatting.score,
        "signed": formatting.signed,
        "unbroken": lambda text: text.replace(" %", "\u00a0%"),
        "with_unit": formatting.with_unit,
    }
    return environment


def style_sheet() -> Markup:
    """The style sheet of the pages."""
    return Markup((HERE / "report.css").read_text(encoding="utf-8"))


def _visible(value: object) -> object:
    """Makes invisible characters visible in every text that is inserted: names and titles come from the run as well."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else formatting.printable(value)


def _sha256(script: str) -> str:
    """The hash by which the Content-Security-Policy allows the script of the page and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
