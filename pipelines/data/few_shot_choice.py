"""The number of examples in a prompt, chosen among several by the scores of training rows that are not examples.

Test rows have no part in the choice: the best of several numbers on the test rows would score higher than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pipelines.config.task import FewShotSettings
from pipelines.console.plain_text import count
from pipelines.data.few_shot import FewShotPrompts, few_shot_prompts, without_leaks
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample

MIN_ROWS = 8
"""The fewest rows by which a number of examples is chosen."""


@dataclass(frozen=True)
class FewShotTrial:
    """The prompts of training rows of a task with `k` examples."""

    k: int
    prompts: FewShotPrompts

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.prompts.summary.task


def few_shot_trials(
    task: str,
    settings: FewShotSettings,
    rows: Sequence[TokenizedExample],
    candidates: Sequence[TokenizedExample],
    prompt_format: PromptFormat,
    cluster_by: str | None = None,
) -> list[FewShotTrial]:
    """The prompts by which the number of examples of a task is chosen: the same training rows for every number.

    rows: the test rows. candidates: training rows of the task in the order in which they become examples. Those after
        the last possible example are asked, without copies of examples and rows of their clusters.
    Empty if the number is given, if there are fewer than MIN_ROWS rows, or if only one number fits the context.
    """
    if not settings.choices:
        return []
    usable = without_leaks(candidates, rows, cluster_by)
    shots = usable[: settings.max_k]
    asked = without_leaks(usable[settings.max_k :], shots, cluster_by)
    if len(asked) < MIN_ROWS:
        return []
    trials = [
        FewShotTrial(k, few_shot_prompts(task, settings.with_k(k), asked, shots, prompt_format, cluster_by=cluster_by))
        for k in settings.choices
    ]
    possible = [trial for trial in trials if trial.prompts.summary.k == trial.k]
    return possible if len(possible) > 1 else []


def choose_trial(
    trials: Sequence[FewShotTrial], scores: Mapping[int, Sequence[float | None]], *, higher_is_better: bool
) -> tuple[FewShotTrial, str]:
    """The trial with the best mean score, of equal ones that with the fewest examples; and a note for the user.

    scores: of each number of examples, those of the rows; None for a row that could not be scored, which then counts
        for no number.
    """
    scored = [
        row for row in range(len(trials[0].prompts.rows)) if all(scores[one.k][row] is not None for one in trials)
    ]
    means = {one.k: fmean(scores[one.k][row] or 0.0 for row in scored) if scored else 0.0 for one in trials}
    best = min(trials, key=lambda one: (-means[one.k] if higher_is_better else means[one.k], one.k))
    results = ", ".join(f"{one.k}: {means[one.k]:.3g}" for one in trials)
    note = (
        f"{count(best.k, 'example')} in the prompt, the best of {len(trials)} numbers on {len(scored)} training rows "
        f"that are no examples (mean score by number: {results})."
    )
    return best, note
