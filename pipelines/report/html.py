"""`report.html`: one file that needs no network, made from the template, the style and the scripts beside this module."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.report import formatting as wording
from pipelines.report import plots
from pipelines.report import summaries as findings

if TYPE_CHECKING:
    from pipelines.report.results import Analysis

HERE = Path(__file__).parent

SCRIPTS = ("page.js", "examples.js", "differences.js", "copying.js", "rating.js")
"""In this order: the first has what the others share."""

MOST_EXAMPLES = 1000
"""Examples on the page, the worst regressions first; the others stand in report.json."""

MOST_CHARACTERS = 4000
"""Of one text on the page; the whole text stands in report.json."""


def render(analysis: Analysis) -> str:
    """The page. Everything from the run is escaped by jinja2; only our own style, script and figures are not."""
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(wording, name)
        for name in (
            "count",
            "duration",
            "heading",
            "interval",
            "number",
            "p_value",
            "printable",
            "score",
            "signed",
            "unit_name",
        )
    }
    environment.filters["notes"] = findings.notes
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return environment.get_template("template.html.jinja").render(
        analysis=analysis,
        tasks=analysis.tasks,
        manifest=analysis.manifest,
        training=analysis.training,
        headline=findings.headline(analysis),
        examples=analysis.worst_first[:MOST_EXAMPLES],
        most_characters=MOST_CHARACTERS,
        config=yaml.safe_dump(analysis.config, sort_keys=False, allow_unicode=True, width=100),
        dot_plot=Markup(plots.dot_plot(list(analysis.tasks.values()))),
        bwt_sentence=findings.bwt_sentence(analysis.bwt) if analysis.bwt else "",
        guard_curve=Markup(plots.guard_curve(analysis)),
        loss_curve=Markup(plots.loss_curve(analysis.training)),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=_sha256(script),
    )


def _visible(value: object) -> object:
    """Names and titles come from the run as well: what cannot be seen is made visible wherever text is put out."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else wording.printable(value)


def _sha256(script: str) -> str:
    """As a Content-Security-Policy names the only script that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
