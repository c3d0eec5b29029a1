"""What would make a task's scores wrong or doubtful, found in the rows: no tokenizer, no model, nothing is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pipelines.config.job import Job
from pipelines.data.examples import Example
from pipelines.errors import ConfigError, Problem
from pipelines.scoring.custom_metrics import try_metric
from pipelines.scoring.metric import Metric, metric_hint, metric_key, resolve

NAMED = 5
"""Labels that a sentence names; it counts the others."""
MOST_ROWS = 0.95
"""The share of a split's rows from which one label is said to be nearly all of them."""


def unresolved(job: Job) -> list[Problem]:
    """A finding for each task and guard whose metric cannot be had: a module that is not there, a function that it lacks."""
    problems = []
    guards = job.pipeline.forgetting.guards
    asked: list[tuple[str, str, tuple[str, ...]]] = [
        *((f"task {name}", task.metric, ("tasks", name)) for name, task in job.pipeline.tasks.items())
    ]
    asked += [
        (f"guard {name}", guard.metric, ("forgetting", "guards", name))
        for name, guard in (guards.items() if isinstance(guards, dict) else ())
        if guard.kind == "task"
    ]
    for whose, metric, where in asked:
        try:
            resolved = resolve(metric)
            if metric != resolved.name:
                raise ConfigError(f"unknown metric {metric!r}; {metric_hint(metric)}")
            if not resolved.scores_completions and "guards" in where:
                raise ConfigError(f"a guard has no metric {metric}; for the loss of texts write kind: text")
        except ConfigError as error:
            problems.append(job.problem(f"{whose}: {error}", "pipeline", *where, "metric"))
    return problems


class ScoreChecks:
    """Sees the examples in passing. Of each label it holds one spelling, and how many rows have it in which split."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._errors = unresolved(job)
        self.metrics: dict[str, Metric] = {}
        for name, task in job.pipeline.tasks.items():
            if ":" not in task.metric:
                self.metrics[name] = resolve(metric_key(task.metric, task.normalize))
        self.to_try = set() if self._errors else set(job.pipeline.tasks) - set(self.metrics)
        self.labels = {name: _Labels(metric) for name, metric in self.metrics.items() if metric.labels}

    def see(self, example: Example) -> None:
        if example.task in self.labels:
            self.labels[example.task].see(example)
        if example.task in self.to_try and example.split == "test":
            self.to_try.remove(example.task)
            metric = self.job.pipeline.tasks[example.task].metric
            if wrong := try_metric(metric, example.completion, example.fields):
                self._errors.append(Problem(f"task {example.task}: {wrong}", example.file, example.row))

    def errors(self) -> list[Problem]:
        """What makes a task's scores meaningless: they stop the job."""
        return [
            *self._errors,
            *(
                self.job.problem(f"task {name}: {said}", "pipeline", "tasks", name)
                for name, labels in self.labels.items()
                for said in labels.one_class()
            ),
        ]

    def warnings(self) -> list[Problem]:
        """Findings about labels, with the task's line in the config."""
        return [
            self.job.problem(f"task {name}: {said}", "pipeline", "tasks", name)
            for name, labels in self.labels.items()
            for said in labels.said(advice=True)
        ]

    def notes(self, task: str) -> list[str]:
        """The same for the report, as sentences without advice."""
        return [
            f"{said[0].upper()}{said[1:]}."
            for said in (self.labels[task].said(advice=False) if task in self.labels else ())
        ]


class _Labels:
    """The labels of one task."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.spellings: dict[str, str] = {}
        self.others: dict[str, str] = {}
        """By form, a second spelling of it."""
        self.rows: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter(), "test": Counter()}

    def see(self, example: Example) -> None:
        assert self.metric.labels is not None
        for label in dict.fromkeys(self.metric.labels(example.completion)):
            form = self.metric.label_form(label)
            if self.spellings.setdefault(form, label) != label:
                self.others.setdefault(form, label)
            self.rows[example.split][form] += 1

    def one_class(self) -> Iterator[str]:
        for split in ("train", "test"):
            if len(self.rows[split]) == 1 and self.metric.single_label:
                label = self.spellings[next(iter(self.rows[split]))]
                advice = "there is nothing to learn or to compare: shuffle the rows or set their `split`"
                yield f"every {split} row has the label {label!r}; {advice}"

    def said(self, advice: bool) -> Iterator[str]:
        yield from self._one_of_two(advice)
        yield from self._never_trained(advice)
        yield from self._nearly_all(advice)

    def _one_of_two(self, advice: bool) -> Iterator[str]:
        pairs = [f"{self.spellings[form]!r} and {other!r}" for form, other in self.others.items()]
        if pairs:
            text = f"labels that differ only in what the metric does not count are one label: {_list(pairs)}"
            one = "spell each label in one way"
            both = self.metric.single_label and "where they are two labels write normalize: false"
            yield text + (f"; {one}, or {both}" if both else f"; {one}") * advice

    def _never_trained(self, advice: bool) -> Iterator[str]:
        unseen = {form: rows for form, rows in self.rows["test"].items() if form not in self.rows["train"]}
        if unseen:
            named = [f"{self.spellings[form]!r} ({_rows(rows)})" for form, rows in unseen.items()]
            count = "a label" if len(unseen) == 1 else f"{len(unseen):,} labels"
            text = f"{count} of the test rows {'has' if len(unseen) == 1 else 'have'} no training row: {_list(named)}"
            yield (
                text
                + "; the model is not taught to give them: move rows with them to train, or leave them out" * advice
            )

    def _nearly_all(self, advice: bool) -> Iterator[str]:
        for split in ("train", "test"):
            total = self.rows[split].total()
            for form, rows in self.rows[split].most_common(1):
                if MOST_ROWS * total <= rows < total and self.metric.single_label:
                    text = f"{rows:,} of {total:,} {split} rows have the label {self.spellings[form]!r}"
                    yield text + "; always giving it scores nearly as well: add rows with the other labels" * advice


def _list(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - NAMED:,} more" if len(parts) > NAMED else ""
    return ", ".join(parts[:NAMED]) + more


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
