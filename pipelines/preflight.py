"""What would go wrong, found in the prepared rows before any training second.

Each finding names task, row, cause and mend. Errors stop the run; warnings are shown and written down.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipelines.config import Job
from pipelines.errors import DataError, Problem
from pipelines.metrics import unresolved
from pipelines.prepare import PreparedRow
from pipelines.prompts import PromptFormat


@dataclass(frozen=True)
class Finding:
    """`serious` findings stop the run."""

    serious: bool
    problem: Problem


def preflight(job: Job, rows: Sequence[PreparedRow], prompts: PromptFormat, context_length: int) -> list[Finding]:
    """All findings, the serious ones first."""
    limit = context_length
    asked = job.ludwig.get("preprocessing", {}).get("global_max_sequence_length")
    if asked:
        limit = min(limit, int(asked))
    findings = [
        *(Finding(True, problem) for problem in unresolved(job)),
        *_each_row(rows, "the prompt is empty; check its column", lambda row: not row.example.prompt.strip()),
        *_each_row(rows, "the completion is empty; check its column", lambda row: not row.example.completion.strip()),
        *_tokens(rows, prompts),
        *_too_long(rows, limit),
        *_special_tokens(rows, prompts),
        *_unit_tests(job, rows),
        *_groups(job, rows),
        *_one_class(job, rows),
        *_leaks(rows),
        *_no_validation(job, rows),
    ]
    return sorted(findings, key=lambda finding: not finding.serious)


def refuse_serious(findings: Sequence[Finding]) -> None:
    """Raises DataError with every serious finding."""
    serious = [finding.problem for finding in findings if finding.serious]
    if serious:
        raise DataError(serious)


def _each_row(
    rows: Sequence[PreparedRow], message: str, wrong: Callable[[PreparedRow], bool], serious: bool = True
) -> Iterator[Finding]:
    """One finding a task: the first row of its kind, and how many there are."""
    found: dict[str, list[PreparedRow]] = defaultdict(list)
    for row in rows:
        if wrong(row):
            found[row.example.task].append(row)
    for task, wrongs in found.items():
        more = f" ({len(wrongs)} such rows)" if len(wrongs) > 1 else ""
        first = wrongs[0].example
        yield Finding(serious, Problem(f"task {task}: {message}{more}", first.file, first.row))


def _tokens(rows: Sequence[PreparedRow], prompts: PromptFormat) -> Iterator[Finding]:
    bos = prompts.tokenizer.bos_token_id
    yield from _each_row(
        rows,
        "no token of the completion would be trained; the tokenizer makes nothing of it",
        lambda row: len(row.input_ids) - row.supervised_from < 2,
    )
    yield from _each_row(
        rows,
        "the end of the answer is not trained, so the model would never stop",
        lambda row: row.input_ids[-1] not in prompts.stop_ids or row.supervised_from >= len(row.input_ids),
    )
    if bos is not None and bos != prompts.end_id:
        yield from _each_row(
            rows,
            f"the prompt starts with {prompts.tokenizer.bos_token} twice; take it out of the template",
            lambda row: row.input_ids[:2] == [bos, bos],
        )


def _too_long(rows: Sequence[PreparedRow], limit: int) -> Iterator[Finding]:
    yield from _each_row(
        rows,
        f"is longer than {limit} tokens, the length limit; alfine never cuts a completion: shorten or drop such rows, "
        f"or raise preprocessing.global_max_sequence_length where the model allows it",
        lambda row: len(row.input_ids) > limit,
    )


def _special_tokens(rows: Sequence[PreparedRow], prompts: PromptFormat) -> Iterator[Finding]:
    special = [token for token in prompts.tokenizer.all_special_tokens if len(token) > 3]
    yield from _each_row(
        rows,
        "the row's text holds a special token of this model (such as an end of turn), which would be read as one; "
        "take it out of the row",
        lambda row: any(token in row.example.prompt or token in row.example.completion for token in special),
    )


def _unit_tests(job: Job, rows: Sequence[PreparedRow]) -> Iterator[Finding]:
    scored = {name for name, task in job.pipeline.tasks.items() if task.metric == "unit_tests"}
    yield from _each_row(
        rows,
        "metric unit_tests needs a column `tests` with assert lines in every test row",
        lambda row: row.example.task in scored and row.example.split == "test" and not row.example.fields.get("tests"),
    )


def _groups(job: Job, rows: Sequence[PreparedRow]) -> Iterator[Finding]:
    for name, task in job.pipeline.tasks.items():
        lacking = [r for r in rows if r.example.task == name and task.group and task.group not in r.example.fields]
        if lacking:
            columns = ", ".join(lacking[0].example.fields)
            message = f"task {name}: group names the column {task.group}, the row has: {columns}"
            yield Finding(True, job.problem(message, "pipeline", "tasks", name, "group"))


def _one_class(job: Job, rows: Sequence[PreparedRow]) -> Iterator[Finding]:
    for name, task in job.pipeline.tasks.items():
        if task.metric != "label":
            continue
        for split in ("train", "test"):
            labels = {row.example.completion for row in rows if row.example.task == name and row.example.split == split}
            if len(labels) == 1:
                yield Finding(
                    True,
                    job.problem(
                        f"task {name}: every {split} row has the label {labels.pop()!r}; there is nothing to learn or "
                        f"to compare: shuffle the rows or set their `split`",
                        "pipeline", "tasks", name,
                    ),
                )  # fmt: skip


def _leaks(rows: Sequence[PreparedRow]) -> Iterator[Finding]:
    trained = Counter((row.example.task, row.example.prompt) for row in rows if row.example.split == "train")
    yield from _each_row(
        rows,
        "this test row's prompt also stands among the training rows; the score would measure memory",
        lambda row: row.example.split == "test" and (row.example.task, row.example.prompt) in trained,
        serious=False,
    )


def _no_validation(job: Job, rows: Sequence[PreparedRow]) -> Iterator[Finding]:
    for name in job.pipeline.tasks:
        if not any(row.example.task == name and row.example.split == "validation" for row in rows):
            yield Finding(
                False,
                job.problem(
                    f"task {name} has no validation rows, so training cannot stop when it gets worse there",
                    "pipeline", "tasks", name,
                ),
            )  # fmt: skip
