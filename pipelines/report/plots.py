"""The figures of the page as SVG: with text as text, the colors of the page, and no date."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.registry import lazy_import
from pipelines.report.formatting import one_line, signed
from pipelines.report.results import Analysis, TaskResult
from pipelines.scoring.metric import Unit
from pipelines.storage.records import TrainingHistory

if TYPE_CHECKING:
    import matplotlib
    from matplotlib import figure as matplotlib_figure
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # 0.5 s that the terminal's tables do not need
    matplotlib = lazy_import("matplotlib")
    matplotlib_figure = lazy_import("matplotlib.figure")

# Placeholder colors for matplotlib. In the SVG they are replaced by the page's CSS variables, so that one figure fits
# light mode, dark mode and print.
INK, DIM, LINE, BASE, TUNED, PAPER, FEW_SHOT = (f"#01010{digit}" for digit in range(7))
_VARIABLES = {
    INK: "--ink",
    DIM: "--dim",
    LINE: "--line",
    BASE: "--base",
    TUNED: "--tuned",
    PAPER: "--paper",
    FEW_SHOT: "--few-shot",
}


@dataclass(frozen=True)
class Palette:
    """The colors of a figure."""

    ink: str
    dim: str
    line: str
    base: str
    tuned: str
    paper: str
    few_shot: str


PAGE = Palette(INK, DIM, LINE, BASE, TUNED, PAPER, FEW_SHOT)
"""The placeholder colors."""
LIGHT = Palette("#1b1f24", "#59616b", "#e1e4e8", "#67707b", "#2557c4", "#fbfbf9", "#7a4fa3")
"""The colors of report.css in light mode, for a figure outside of the page."""
PNG_DPI = 200

DOTS_LABEL = "Mean score per task, from the first model to the second"

WIDTH = 4.7
"""Width of the figures in inches of 72 points. The text is large enough for a phone, where the page scales it down."""


@dataclass(frozen=True)
class ParetoPoint:
    """A strategy in the figure `pareto_front`."""

    name: str
    gain: float
    gain_ci95: tuple[float, float]
    text_loss_increase: float
    text_loss_increase_ci95: tuple[float, float]
    pareto_optimal: bool


def dot_plot(tasks: Sequence[TaskResult]) -> str:
    """Base → tuned per task, the base with examples in its prompt if there is one, and the 95 % interval of the change;
    "" if no task has a scale from 0 to 100."""
    shown = [task for task in tasks if task.percent_scale]
    return _svg("dots", DOTS_LABEL, _dots_height(shown), _draw_dots(shown, PAGE)) if shown else ""


def dot_plot_png(tasks: Sequence[TaskResult]) -> bytes:
    """The figure `dot_plot` as a PNG file; empty if no task has a scale from 0 to 100."""
    shown = [task for task in tasks if task.percent_scale]
    return _png(_dots_height(shown), _draw_dots(shown, LIGHT)) if shown else b""


def _dots_height(shown: Sequence[TaskResult]) -> float:
    return 0.7 + 0.58 * len(shown)


def _draw_dots(shown: Sequence[TaskResult], colors: Palette) -> Callable[[Figure, Axes], None]:
    height = _dots_height(shown)

    def draw(figure: Figure, axes: Axes) -> None:
        for y, task in enumerate(shown):
            comparison = task.comparison
            low, high = (comparison.base + bound for bound in comparison.ci95)
            axes.plot(
                [max(low, 0), min(high, 100)], [y, y], color=colors.tuned, lw=6, alpha=0.25, solid_capstyle="butt"
            )
            axes.plot([comparison.base, comparison.tuned], [y, y], color=colors.dim, lw=1.2)
            if task.few_shot is not None:
                mean = task.few_shot.comparison.base
                axes.plot([mean], [y], "D", mfc=colors.paper, mec=colors.few_shot, mew=1.6, ms=6.5)
            # A ring and a disc, so that base and tuned differ without color as well.
            axes.plot([comparison.base], [y], "o", mfc=colors.paper, mec=colors.base, mew=2, ms=8)
            axes.plot([comparison.tuned], [y], "o", color=colors.tuned, ms=9)
            axes.text(0, y - 0.3, one_line(task.name, 32), color=colors.ink, weight="bold")
            axes.text(100, y - 0.3, signed(comparison.delta, task.unit), color=colors.ink, ha="right")
        axes.set(xlim=(-2, 102), ylim=(len(shown) - 0.5, -0.65), xticks=range(0, 101, 20))
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=colors.line, lw=0.8)
        figure.subplots_adjust(left=0.02, right=0.98, bottom=0.32 / height, top=1 - 0.05 / height)

    return draw


def loss_curve(training: TrainingHistory | None) -> str:
    """Training and validation loss over the steps, with the kept step marked; "" if nothing was recorded."""
    if training is None or not (training.train_loss or training.validation_loss):
        return ""

    def draw(figure: Figure, axes: Axes) -> None:
        steps, losses = _downsample([(point.step, point.loss) for point in training.train_loss], max_points=120)
        axes.plot(steps, losses, color=BASE, lw=1.6)
        validation = training.validation_loss
        axes.plot(
            [point.step for point in validation],
            [point.loss for point in validation],
            "o-",
            color=TUNED,
            lw=1.6,
            ms=5,
        )
        kept = [point for point in validation if point.step == training.best_step]
        axes.set_ylim(bottom=0)
        if kept:
            step, late = kept[0].step, kept[0].step > training.steps / 2
            axes.axvline(step, color=DIM, lw=1, ls=(0, (3, 3)), zorder=0)
            axes.plot(step, kept[0].loss, "o", mfc="none", mec=TUNED, ms=12, mew=1.6)
            axes.annotate(
                f"step {step} kept",
                (step, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if late else 5, -3),
                textcoords="offset points",
                ha="right" if late else "left",
                va="top",
                color=INK,
            )
        axes.set_xlabel("step", color=DIM)
        axes.set_ylabel("loss (nats per token)", color=DIM)
        axes.grid(axis="y", color=LINE, lw=0.8)
        figure.subplots_adjust(left=0.13, right=0.98, top=0.96, bottom=0.18)

    return _svg("loss", "Loss over the steps of training", 2.9, draw)


def retention_curve(analysis: Analysis) -> str:
    """The change of each NLL or divergence since the start of training, over the steps; "" if none was measured."""
    training = analysis.training
    shown = [result for result in analysis.retention.values() if result.unit is Unit.NATS_PER_TOKEN]
    if training is None or not training.retention or not shown:
        return ""

    def draw(figure: Figure, axes: Axes) -> None:
        for result, color, style in zip(shown, (TUNED, BASE, DIM), ("o-", "s--", "^:"), strict=False):
            changes = [(point.step, point.scores[result.name] - result.comparison.base) for point in training.retention]
            steps, values = zip(*[(0, 0.0), *changes], strict=True)
            axes.plot(steps, values, style, color=color, lw=1.6, ms=4, label=one_line(result.name, 24))
        axes.axhline(0, color=LINE, lw=1)
        axes.set_xlabel("step", color=DIM)
        axes.set_ylabel("change (nats per token)", color=DIM)
        axes.grid(axis="y", color=LINE, lw=0.8)
        axes.legend(frameon=False, labelcolor=INK)
        figure.subplots_adjust(left=0.15, right=0.98, top=0.96, bottom=0.18)

    return _svg("retention-curve", "Change of the retention evals over the steps of training", 2.9, draw)


def pareto_front(points: Sequence[ParetoPoint]) -> str:
    """Gain on the tasks over the increase of the text NLL, one point per strategy, with both intervals."""

    def draw(figure: Figure, axes: Axes) -> None:
        for point in points:
            x, y, color = point.text_loss_increase, point.gain, TUNED if point.pareto_optimal else BASE
            axes.plot(point.text_loss_increase_ci95, (y, y), color=color, lw=1.2, alpha=0.6)
            axes.plot((x, x), point.gain_ci95, color=color, lw=1.2, alpha=0.6)
            axes.plot([x], [y], "o", mfc=color if point.pareto_optimal else PAPER, mec=color, mew=2, ms=8)
            axes.annotate(point.name, (x, y), xytext=(7, 6), textcoords="offset points", color=INK)
        axes.set_xlabel("increase of the text NLL (nats per token)", color=DIM)
        axes.set_ylabel("gain on the tasks (points)", color=DIM)
        axes.grid(color=LINE, lw=0.8)
        figure.subplots_adjust(left=0.14, right=0.97, top=0.96, bottom=0.16)

    return _svg("pareto-front", "Gain and forgetting of each strategy", 3.4, draw)


def _downsample(points: list[tuple[int, float]], max_points: int) -> tuple[list[float], list[float]]:
    """At most `max_points` points, which are means of as many neighbors: batches are noisy, and runs are long."""
    size = -(-len(points) // max_points) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    steps = [sum(step for step, _ in group) / len(group) for group in groups]
    return steps, [sum(loss for _, loss in group) / len(group) for group in groups]


def _figure(height: float, draw: Callable[[Figure, Axes], None]) -> Figure:
    figure = matplotlib_figure.Figure(figsize=(WIDTH, height))
    draw(figure, figure.add_subplot())
    return figure


def _style(colors: Palette, **changes: str) -> dict[str, object]:
    return {
        "text.parse_math": False,
        "font.size": 10,
        "xtick.color": colors.line,
        "xtick.labelcolor": colors.dim,
        "ytick.color": colors.line,
        "ytick.labelcolor": colors.dim,
        "axes.edgecolor": colors.line,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **changes,
    }


@contextlib.contextmanager
def _missing_glyphs_allowed() -> Iterator[None]:
    # The fonts of the page draw the names of tasks; matplotlib does not need their glyphs.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _png(height: float, draw: Callable[[Figure, Axes], None]) -> bytes:
    """The figure in the colors of light mode."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({**_style(LIGHT), "axes.facecolor": LIGHT.paper}), _missing_glyphs_allowed():
        figure = _figure(height, draw)
        figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor=LIGHT.paper, metadata={"Software": None})
    return buffer.getvalue()


def _svg(name: str, label: str, height: float, draw: Callable[[Figure, Axes], None]) -> str:
    buffer = io.StringIO()
    with (
        matplotlib.rc_context(_style(PAGE, **{"svg.fonttype": "none", "svg.hashsalt": name})),
        _missing_glyphs_allowed(),
    ):
        figure = _figure(height, draw)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The ids of two figures on one page must differ.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg
