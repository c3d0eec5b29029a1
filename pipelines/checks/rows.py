"""What would go wrong, found in the prepared rows before any training second.

Each finding names task, row, cause and mend. Errors stop the run; warnings are shown and written down.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pipelines.checks.references import ReferenceChecks
from pipelines.checks.scores import ScoreChecks
from pipelines.config.job import Job
from pipelines.config.trainer import of_rows
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import PreparedRow
from pipelines.errors import DataError, Problem
from pipelines.evaluation.retention_files import read_task_examples, retention_eval_configs


@dataclass(frozen=True)
class Finding:
    """`serious` findings stop the run."""

    serious: bool
    problem: Problem


@dataclass
class RowCheck:
    """What may be wrong with a row; of those that are, the first of each task is named, with how many there are."""

    message: str
    wrong: Callable[[PreparedRow], object]
    serious: bool = True
    firsts: dict[str, PreparedRow] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def see(self, row: PreparedRow) -> None:
        if self.wrong(row):
            self.firsts.setdefault(row.example.task, row)
            self.counts[row.example.task] += 1

    def findings(self) -> Iterator[Finding]:
        for task, row in self.firsts.items():
            more = f" ({self.counts[task]} such rows)" if self.counts[task] > 1 else ""
            yield Finding(
                self.serious, Problem(f"task {task}: {self.message}{more}", row.example.file, row.example.row)
            )


class Preflight:
    """Sees every row once, in passing, and holds none: there may be more than fit into memory."""

    def __init__(self, job: Job, prompts: PromptFormat, context_length: int) -> None:
        self.job = job
        asked = job.ludwig.get("preprocessing", {}).get("global_max_sequence_length")
        limit = min(context_length, int(asked)) if asked else context_length
        self.checks = [*_text_checks(prompts), *_token_checks(prompts, limit)]
        self.counts: Counter[tuple[str, str]] = Counter()
        self.scores = ScoreChecks(job)
        self.references = ReferenceChecks(job, prompts, context_length)
        for name, guard in retention_eval_configs(job.pipeline.forgetting).items():
            if guard.kind == "task":
                self.references.see_guard(name, guard, read_task_examples(guard)[: guard.rows])
        self.leaks = _Leaks()

    def watch(self, rows: Iterable[PreparedRow]) -> Iterator[PreparedRow]:
        """The same rows, looked at as they go by."""
        for row in rows:
            self.see(row)
            yield row

    def see(self, row: PreparedRow) -> None:
        example = row.example
        self.counts[example.task, example.split] += 1
        for check in self.checks:
            check.see(row)
        self.scores.see(example)
        self.references.see(row)
        self.leaks.see(row)

    def findings(self) -> list[Finding]:
        """All of them, the serious ones first."""
        found = [
            *(Finding(True, problem) for problem in self.scores.errors()),
            *(Finding(False, problem) for problem in self.scores.warnings()),
            *(finding for check in self.checks for finding in check.findings()),
            *(Finding(serious, problem) for serious, problem in self.references.findings()),
            *self.leaks.findings(),
            *(
                Finding(True, problem)
                for problem in of_rows(self.job, self._rows_of("train"), self._rows_of("validation"))
            ),
            *self._no_validation(),
        ]
        return sorted(found, key=lambda finding: not finding.serious)

    def _rows_of(self, split: str) -> int:
        return sum(count for (_, of), count in self.counts.items() if of == split)

    def _no_validation(self) -> Iterator[Finding]:
        for name in self.job.pipeline.tasks:
            if not self.counts[name, "validation"]:
                message = f"task {name} has no validation rows, so training cannot stop when it gets worse there"
                yield Finding(False, self.job.problem(message, "pipeline", "tasks", name))


def refuse_serious(findings: Sequence[Finding]) -> None:
    """Raises DataError with every serious finding."""
    serious = [finding.problem for finding in findings if finding.serious]
    if serious:
        raise DataError(serious)


def _text_checks(prompts: PromptFormat) -> list[RowCheck]:
    special = [token for token in prompts.tokenizer.all_special_tokens if len(token) > 3]
    return [
        RowCheck(
            "the row's text holds a special token of this model (such as an end of turn), which would be read as one; "
            "take it out of the row",
            lambda row: any(token in row.example.prompt or token in row.example.completion for token in special),
        ),
    ]


def _token_checks(prompts: PromptFormat, limit: int) -> list[RowCheck]:
    bos = prompts.tokenizer.bos_token_id
    checks = [
        RowCheck(
            "no token of the completion would be trained; the tokenizer makes nothing of it",
            lambda row: len(row.input_ids) - row.supervised_from < 2,
        ),
        RowCheck(
            "the end of the answer is not trained, so the model would never stop",
            lambda row: row.input_ids[-1] not in prompts.stop_ids or row.supervised_from >= len(row.input_ids),
        ),
        RowCheck(
            f"is longer than {limit} tokens, the length limit; alfine never cuts a completion: shorten or drop such rows, "
            f"or raise preprocessing.global_max_sequence_length where the model allows it",
            lambda row: len(row.input_ids) > limit,
        ),
    ]
    if bos is not None and bos != prompts.end_id:
        message = f"the prompt starts with {prompts.tokenizer.bos_token} twice; take it out of the template"
        checks.append(RowCheck(message, lambda row: row.input_ids[:2] == [bos, bos]))
    return checks


class _Leaks:
    """Test rows whose prompt, but for white space, also stands among the training rows. Texts are held as their hashes, 8 bytes
    each."""

    def __init__(self) -> None:
        self.trained, self.answers = array("q"), array("q")
        self.tested: list[tuple[int, int, str, str, int]] = []

    def see(self, row: PreparedRow) -> None:
        example = row.example
        key, answer = hash((example.task, *example.prompt.split())), hash(tuple(example.completion.split()))
        if example.split == "train":
            self.trained.append(key)
            self.answers.append(answer)
        elif example.split == "test":
            self.tested.append((key, answer, example.task, example.file, example.row))

    def findings(self) -> Iterator[Finding]:
        tested = {key for key, *_ in self.tested}
        both = {(key, answer) for key, answer in zip(self.trained, self.answers, strict=True) if key in tested}
        trained = {key for key, _ in both}
        leaked = [one for one in self.tested if one[0] in trained]
        for task in dict.fromkeys(one[2] for one in leaked):
            of_task = [one for one in leaked if one[2] == task]
            others = sum((key, answer) not in both for key, answer, *_ in of_task)
            more = f" ({len(of_task)} such rows)" if len(of_task) > 1 else ""
            more += f"; {others} of them with another answer there, so that one of the two is wrong" if others else ""
            message = "this test row's prompt also stands among the training rows; the score would measure memory"
            yield Finding(False, Problem(f"task {task}: {message}{more}", *of_task[0][3:]))
