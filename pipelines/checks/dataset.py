"""Checks of the tokenized examples of a job, before the first training step ("preflight")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from pipelines.checks.findings import Finding
from pipelines.checks.metrics import MetricChecks
from pipelines.checks.overlap import TrainTestOverlap
from pipelines.checks.references import ReferenceChecks
from pipelines.checks.rows import row_checks
from pipelines.config.job import Job
from pipelines.config.trainer_checks import check_trainer_on_data
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.evaluation.retention import configured_retention_evals


class DatasetChecks:
    """Observes every tokenized example of a job once and reports what is wrong with them.

    Examples are observed as they are streamed to disk, and none is kept: there may be more than fit into memory.

    Attributes:
        counts: the number of examples per (task, split).
        max_length: the most tokens that a row may have.
    """

    def __init__(self, job: Job, prompt_format: PromptFormat, context_length: int) -> None:
        self.job = job
        self.max_length = min(context_length, job.max_sequence_length or context_length)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.rows = row_checks(prompt_format, self.max_length)
        self.metrics = MetricChecks(job)
        self.references = ReferenceChecks(job, prompt_format, context_length)
        for name, retention_eval in configured_retention_evals(job.pipeline.forgetting).items():
            self.references.observe_retention_eval(name, retention_eval)
        self.overlap = TrainTestOverlap()

    def observe_all(self, rows: Iterable[TokenizedExample]) -> Iterator[TokenizedExample]:
        """Yields `rows` unchanged and observes each on the way."""
        for row in rows:
            self.observe(row)
            yield row

    def observe(self, row: TokenizedExample) -> None:
        example = row.example
        self.counts[example.task, example.split] += 1
        for check in self.rows:
            check.observe(row)
        self.metrics.observe(example)
        self.references.observe(row)
        self.overlap.observe(example)

    def findings(self, *, is_complete: bool = True) -> list[Finding]:
        """All findings, errors first. Unless all rows were observed, only those that each concern one row."""
        if not is_complete:
            findings = [*(finding for check in self.rows for finding in check.findings()), *self.references.findings()]
            return sorted(findings, key=lambda finding: finding.severity != "error")
        trainer_errors = check_trainer_on_data(self.job, self._num_rows("train"), self._num_rows("validation"))
        findings = [
            *(Finding("error", problem) for problem in self.metrics.errors()),
            *(Finding("warning", problem) for problem in self.metrics.warnings()),
            *(finding for check in self.rows for finding in check.findings()),
            *self.references.findings(),
            *self.overlap.findings(),
            *(Finding("error", problem) for problem in trainer_errors),
            *self._tasks_without_validation(),
        ]
        return sorted(findings, key=lambda finding: finding.severity != "error")

    def label_notes(self, task: str) -> list[str]:
        """The warnings about a task's labels as sentences for the report."""
        return self.metrics.notes(task)

    def _num_rows(self, split: str) -> int:
        return sum(count for (_, counted_split), count in self.counts.items() if counted_split == split)

    def _tasks_without_validation(self) -> Iterator[Finding]:
        for name in self.job.pipeline.tasks:
            if not self.counts[name, "validation"]:
                message = f"task {name} has no validation rows, so early stopping cannot monitor it"
                yield Finding("warning", self.job.problem(message, "pipeline", "tasks", name))
