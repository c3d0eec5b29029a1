"""Checks of the metrics that a config names: each can be resolved, and custom ones can score a row of their task."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.checks.labels import LabelChecks
from pipelines.config.job import Job
from pipelines.data.examples import Example
from pipelines.errors import ConfigError, Problem
from pipelines.scoring.custom_metrics import try_metric
from pipelines.scoring.metric import Metric, metric_from_key, metric_hint, metric_key


def unresolved_metrics(job: Job) -> Iterator[Problem]:
    """One problem per task or retention eval whose metric does not exist or cannot be used there."""
    for name, task in job.pipeline.tasks.items():
        try:
            _resolve_by_its_name(task.metric)
        except ConfigError as error:
            yield job.problem(f"task {name}: {error}", "pipeline", "tasks", name, "metric")
    evals = job.pipeline.forgetting.evals
    for name, settings in evals.items() if isinstance(evals, dict) else ():
        if not settings.metric_name:
            continue
        try:
            if not _resolve_by_its_name(settings.metric_name).scores_completions:
                raise ConfigError(
                    f"metric {settings.metric_name} is not available here; for the loss of texts write kind: text_nll"
                )
        except ConfigError as error:
            yield job.problem(f"retention eval {name}: {error}", "pipeline", "forgetting", "evals", name, "metric")


def _resolve_by_its_name(metric: str) -> Metric:
    """Resolves a metric that the config names. Raises ConfigError for the internal key of a metric's variant."""
    resolved = metric_from_key(metric)
    if metric != resolved.name:
        raise ConfigError(f"unknown metric {metric!r}; {metric_hint(metric)}")
    return resolved


class MetricChecks:
    """Observes the examples of a job and reports failing metrics and labels that make scores meaningless.

    It needs no tokenizer and no model.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._errors = list(unresolved_metrics(job))
        built_in: dict[str, Metric] = {
            name: metric_from_key(metric_key(task.metric, task.normalize))
            for name, task in job.pipeline.tasks.items()
            if ":" not in task.metric
        }
        self._untried = set() if self._errors else set(job.pipeline.tasks) - set(built_in)
        self._labels = {name: LabelChecks(metric) for name, metric in built_in.items() if metric.labels}

    def observe(self, example: Example) -> None:
        """Counts the labels of `example`. Tries a custom metric on the first test example of its task."""
        if example.task in self._labels:
            self._labels[example.task].observe(example)
        if example.task in self._untried and example.split == "test":
            self._untried.remove(example.task)
            metric = self.job.pipeline.tasks[example.task].metric
            if failure := try_metric(metric, example.reference, example.fields):
                self._errors.append(Problem(f"task {example.task}: {failure}", example.file, example.row_number))

    def errors(self) -> list[Problem]:
        """Problems that make the scores of a task meaningless. They stop the job."""
        single_label = [
            self._task_problem(name, message)
            for name, labels in self._labels.items()
            for message in labels.single_label()
        ]
        return [*self._errors, *single_label]

    def warnings(self) -> list[Problem]:
        """Doubtful labels, located at their task in the config."""
        return [
            self._task_problem(name, message)
            for name, labels in self._labels.items()
            for message in labels.warnings(with_advice=True)
        ]

    def notes(self, task: str) -> list[str]:
        """The warnings about one task as sentences for the report, without advice."""
        if task not in self._labels:
            return []
        return [f"{message[0].upper()}{message[1:]}." for message in self._labels[task].warnings(with_advice=False)]

    def _task_problem(self, name: str, message: str) -> Problem:
        return self.job.problem(f"task {name}: {message}", "pipeline", "tasks", name)
