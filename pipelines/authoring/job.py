"""A job for a sample of rows: its config with comments, and what was assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pipelines.authoring.groups import cluster_column, has_group_name
from pipelines.authoring.kinds import KINDS, Kind, Labels
from pipelines.authoring.lengths import Lengths, Texts, is_reasoning_model, measure
from pipelines.authoring.notes import MIN_ROWS, role_notes, row_notes
from pipelines.authoring.prompts import NO_ANSWER, NO_LABEL, has_unanswered, write_templates
from pipelines.authoring.roles import Roles
from pipelines.authoring.sample import Sample
from pipelines.config.jinja_templates import jinja_template
from pipelines.config.messages import KeyPath, shorten
from pipelines.config.task import Task
from pipelines.data.readers import RowErrors
from pipelines.data.row_formats import fill_row, used_columns
from pipelines.data.templates import fill_reasoning, template_columns
from pipelines.errors import DataError, Problem
from pipelines.modeling.base_models import PACKAGED_MODELS

MAX_LENGTH = 2048
"""Tokens of a row up to which every row is kept whole."""
MAX_NEW_TOKENS = 1024
KEPT_SHARE = 0.98
"""Share of the rows that a limit keeps whole if the longest ones are longer than MAX_LENGTH."""
MAX_LEFT_OUT = 0.1
"""Share of the rows that may be longer than the limit and left out. If there are more, their prompts are shortened."""
MAX_TEST_ROWS = 2000
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Draft:
    """The config of a job, comments on its lines, and sentences for the user.

    summary: pairs of a word and what was chosen.
    """

    config: dict[str, Any]
    comments: dict[KeyPath, str] = field(default_factory=dict)
    summary: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Choices:
    """What the job is to be, as guessed or as answered.

    metric: None for that of the kind.
    notes: on the kind, as sentences without a full stop.
    """

    task: str
    base_model: str
    roles: Roles
    kind: Kind
    labels: Labels | None = None
    metric: str | None = None
    notes: tuple[str, ...] = ()


def write_job(sample: Sample, choices: Choices) -> Draft:
    """Writes the job. Raises DataError for rows that the task cannot use."""
    task: dict[str, Any] = {"data": sample.data}
    draft = Draft({"pipeline": {"tasks": {choices.task: task}}})
    path = ("pipeline", "tasks", choices.task)
    if choices.roles.conversation is not None:
        task["messages"] = choices.roles.conversation.source
        draft.comments[(*path, "messages")] = "the column with the conversation"
        if choices.roles.tools is not None:
            task["tools"] = choices.roles.tools.source
        draft.summary.append(("conversation", choices.roles.conversation.name))
    else:
        _add_templates(draft, task, path, sample, choices)
    _add_metric(draft, task, path, choices)
    _add_cluster(draft, task, path, choices)
    _check_answers(draft, sample, choices)
    _add_reasoning(draft, task, path, choices)
    written = _task(task, sample)
    rows = fill_rows(choices.task, written, sample)
    lengths = measure(rows, choices.base_model)
    _add_split(draft, sample)
    _add_model(draft, choices.base_model)
    _add_lengths(draft, task, path, lengths, sample)
    _add_trainer(draft, sample, choices)
    used = {*used_columns(written), *_columns_of_other_keys(written)}
    draft.notes += [*choices.notes, *role_notes(choices.roles, choices.labels, sample, used), *row_notes(sample)]
    return draft


def _columns_of_other_keys(task: Task) -> list[str]:
    """The columns that a task uses and `used_columns` does not name."""
    columns = ["tests"] if task.metric == "unit_tests" else []
    if isinstance(task.reasoning, str):
        columns += template_columns(task.reasoning)
    if task.system is not None and task.template == "jinja":
        columns += jinja_template(task.system).columns
    return columns


def _check_answers(draft: Draft, sample: Sample, choices: Choices) -> None:
    """Raises DataError for rows without an answer, unless their questions may have none."""
    output = choices.roles.output
    if output is None or not output.num_missing or choices.roles.flags:
        return
    if choices.kind == "several labels":
        draft.notes.append(
            f"rows without a label ({output.num_missing:,}) have the completion {NO_LABEL!r}; drop those that nobody "
            "has labelled"
        )
        return
    if has_unanswered(output):
        draft.notes.append(f"rows without an answer ({output.num_missing:,}) have the completion {NO_ANSWER!r}")
        return
    first = sample.rows[output.values.index(None)]
    message = (
        f"column {output.name} has no value in {output.num_missing:,} of {len(sample.rows):,} rows; fill it in, or "
        "drop these rows"
    )
    raise DataError(Problem(message, first.file, first.number))


def _task(keys: dict[str, Any], sample: Sample) -> Task:
    """The task. Raises DataError for the name of a column that no key can hold."""
    try:
        return Task.model_validate(keys)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        reason = details.get("ctx", {}).get("error", details["msg"])
        message = f"no task can be written with these columns ({'.'.join(map(str, details['loc']))}: {reason})"
        raise DataError(Problem(f"{message}; rename the column", sample.data)) from None


def _add_reasoning(draft: Draft, task: dict[str, Any], path: KeyPath, choices: Choices) -> None:
    """The thoughts in a column are trained if the base model has markers for them."""
    column = choices.roles.reasoning
    if column is None or choices.roles.conversation is not None:
        return
    if not is_reasoning_model(choices.base_model) or not column.has_placeholder:
        draft.notes.append(
            f"{column.name} may hold the thoughts before the answers: they are trained only with a base model that has "
            "markers for reasoning"
        )
        return
    task["reasoning"] = f"{{{column.source}}}"
    draft.comments[(*path, "reasoning")] = "the thought before the answer"
    draft.summary.append(("reasoning", column.name))


def fill_rows(name: str, task: Task, sample: Sample) -> list[Texts]:
    """The rows with their templates filled. Raises DataError with each kind of problem at its first row."""
    errors, rows = RowErrors(f"task {name}: "), []
    for row in sample.rows:
        try:
            thought = fill_reasoning(task.reasoning, row.fields, used_columns(task)) if task.reasoning else None
            rows += [Texts(filled, thought) for filled in fill_row(task, row.fields, task.system)]
        except DataError as error:
            errors.add(row.file, row.number, str(error))
    errors.raise_if_any()
    return rows


def _add_templates(draft: Draft, task: dict[str, Any], path: KeyPath, sample: Sample, choices: Choices) -> None:
    roles, kind, labels = choices.roles, choices.kind, choices.labels
    output = roles.output
    assert output is not None
    if kind == "conversation":
        task |= {"prompt": f"{{{roles.inputs[0].source}}}", "completion": f"{{{output.source}}}"}
    else:
        templates = write_templates(roles, kind, labels, all_labels_known=sample.is_complete)
        task |= templates.as_keys()
        if templates.lists_labels:
            draft.comments[(*path, "prompt")] = "the labels are those of the rows"
    if roles.system is not None and task.get("template") == "jinja":
        task["system"] = f'{{{{ {roles.system.expression} or "" }}}}'
    if roles.history is not None:
        task["history"] = roles.history.source
    what = KINDS[kind][0]
    if labels is not None:
        shown = ", ".join(labels.values[:5]) + (", …" if len(labels.values) > 5 else "")
        what = f"{len(labels.values):,} labels ({shorten(shown, 80)})" + (
            ", several per row" if kind != "labels" else ""
        )
    draft.comments[(*path, "completion")] = what
    draft.summary += [
        ("prompt", ", ".join(column.name for column in (*roles.inputs, *(column for _, column in roles.options)))),
        ("completion", f"{output.name if not roles.flags else 'the columns that are 1'}: {what}"),
    ]


def _add_metric(draft: Draft, task: dict[str, Any], path: KeyPath, choices: Choices) -> None:
    metric, reason = choices.metric or KINDS[choices.kind][1], ""
    tests = choices.roles.tests
    if choices.metric is None and choices.kind == "code" and tests is not None:
        if tests.source == "tests":
            metric, reason = "unit_tests", "the column tests, run in a sandbox"
        else:
            draft.notes.append(
                f"the column {tests.source} may hold unit tests; to run them, rename it to tests and write metric: "
                "unit_tests"
            )
    task["metric"] = metric
    draft.comments[(*path, "metric")] = reason or "exact_match | multilabel_f1 | rouge | chrf | unit_tests | nll"
    draft.summary.append(("metric", metric))


def _add_cluster(draft: Draft, task: dict[str, Any], path: KeyPath, choices: Choices) -> None:
    """Rows of one context, user, document, … are kept in one split."""
    column = cluster_column(choices.roles)
    if column is None:
        return
    values = "texts" if column in choices.roles.inputs else "values"
    number = f"{column.num_distinct:,} {values}"
    if column.num_missing or not (column in choices.roles.inputs or has_group_name(column)):
        missing = f", after the {column.num_missing:,} rows without one have got it" if column.num_missing else ""
        draft.notes.append(
            f"several rows have the same {column.name} ({number}): if they belong together, keep them in one split "
            f"with cluster_by: {column.source}{missing}"
        )
        return
    task["cluster_by"] = column.source
    draft.comments[(*path, "cluster_by")] = f"{number}; the rows of one are in one split"
    draft.summary.append(("cluster by", f"{column.name}: {number}, the rows of one are in one split"))


def _add_split(draft: Draft, sample: Sample) -> None:
    counts = sample.num_rows_by_split()
    more = "" if sample.is_complete else " of the rows that were read"
    if sample.names_splits:
        given = {split: count for split, count in counts.items() if split is not None}
        where = "files" if sample.source.has_splits else "the column split"
        listed = ", ".join(f"{split} {count:,}" for split, count in given.items())
        missing = [split for split in ("validation", "test") if split not in given and sample.source.has_splits]
        drawn = f"; {' and '.join(missing)} drawn from train" if missing else ""
        draft.summary.append(("split", f"from {where}: {listed}{more}{drawn}"))
        return
    count = counts.total()
    fraction = 0.1 if count <= 10 * MAX_TEST_ROWS else round(MAX_TEST_ROWS / count, 3)
    draft.config["pipeline"]["split"] = {"validation": fraction, "test": fraction}
    held_out = max(1, round(count * fraction))
    draft.comments[("pipeline", "split")] = "drawn from the rows, the same for every seed"
    number = f"{held_out:,} of {count:,} rows each" if sample.is_complete else f"{fraction:.0%} of the rows each"
    draft.summary.append(("split", f"validation and test: {number}, drawn"))


def _add_model(draft: Draft, base_model: str) -> None:
    draft.config["pipeline"] |= {"seed": 42, "forgetting": "auto"}
    draft.comments[("pipeline", "forgetting")] = "auto | none | ewc | si | replay | distill | l2sp | interpolate"
    draft.config |= {
        "model_type": "llm",
        "base_model": base_model,
        "adapter": {"type": "lora", "r": 16, "alpha": 32, "dropout": 0.0, "target_modules": MODULES},
    }
    draft.comments[("base_model",)] = "or a hub id (owner/name), or a folder"
    draft.summary.append(("base model", base_model))


def _add_lengths(draft: Draft, task: dict[str, Any], path: KeyPath, lengths: Lengths, sample: Sample) -> None:
    longest, most = lengths.totals[-1], lengths.completions[-1]
    context = lengths.context or MAX_LENGTH
    cap = min(context, max(MAX_LENGTH, _quantile(lengths)))
    limit = min(_rounded(1.1 * longest, 64), context) if longest <= cap else cap
    draft.config["preprocessing"] = {"global_max_sequence_length": limit}
    key: KeyPath = ("preprocessing", "global_max_sequence_length")
    draft.comments[key] = f"tokens; the longest row has {longest:,}"
    about = f"longest row {longest:,} tokens, limit {limit:,}; longest answer {most:,} tokens"
    num_longer = sum(total > limit for total in lengths.totals)
    if longest > limit or not sample.is_complete:
        task["too_long"] = "truncate_prompt" if num_longer > MAX_LEFT_OUT * lengths.num_rows else "drop"
        draft.comments[(*path, "too_long")] = "drop | truncate_prompt | refuse: rows over the limit"
    if num_longer:
        # Only the longest rows are counted: if all of these are too long, others may be as well.
        at_least = "at least " if num_longer == len(lengths.totals) < lengths.num_rows else ""
        number = f"{at_least}{num_longer:,} of {lengths.num_rows:,}"
        draft.notes.append(
            f"rows of more than {limit:,} tokens are left out ({number}); write too_long: truncate_prompt to shorten "
            "their prompts"
            if task["too_long"] == "drop"
            else f"the prompts of rows of more than {limit:,} tokens are shortened ({number}); write too_long: drop to "
            "leave these rows out"
        )
    bound = min(_rounded(1.1 * most + 2, 8), MAX_NEW_TOKENS, limit)
    task["max_new_tokens"] = bound
    draft.comments[(*path, "max_new_tokens")] = f"the longest answer has {most:,} tokens"
    if most > bound:
        num_longer = sum(count > bound for count in lengths.completions)
        draft.notes.append(f"answers of more than {bound:,} tokens are cut in the evaluation ({num_longer:,} of them)")
    if lengths.thoughts:
        task["max_reasoning_tokens"] = _rounded(1.1 * lengths.thoughts[-1], 8)
        key = (*path, "max_reasoning_tokens")
        draft.comments[key] = f"the longest thought has {lengths.thoughts[-1]:,} tokens"
    draft.config["generation"] = {"do_sample": False, "max_new_tokens": bound}
    draft.summary.append(("lengths", f"{about}, max_new_tokens {bound:,} ({lengths.source})"))


def _quantile(lengths: Lengths) -> int:
    """The length that KEPT_SHARE of the rows do not exceed, as far as it is among the longest ones."""
    index = math.floor(KEPT_SHARE * lengths.num_rows) - (lengths.num_rows - len(lengths.totals))
    return _rounded(lengths.totals[max(0, min(index, len(lengths.totals) - 1))], 64)


def _rounded(value: float, step: int) -> int:
    """The next multiple of `step`."""
    return math.ceil(value / step) * step


def _add_trainer(draft: Draft, sample: Sample, choices: Choices) -> None:
    count = len(sample.rows)
    counts = sample.num_rows_by_split()
    is_drawn = not sample.names_splits or sample.source.has_splits
    has_validation = bool(counts["validation"]) or is_drawn and count >= MIN_ROWS
    epochs = 3 if count < 3000 else 2 if count < 10_000 else 1
    is_small = choices.base_model in PACKAGED_MODELS
    draft.config["trainer"] = {
        "type": "finetune",
        "epochs": epochs,
        "batch_size": 8,
        "learning_rate": 0.0006 if is_small else 0.0002,
        "learning_rate_scheduler": {"decay": "linear", "warmup_fraction": 0.05},
        "optimizer": {"type": "adamw", "weight_decay": 0.0},
        "gradient_clipping": {"clipglobalnorm": 1.0},
        **({"early_stop": 3} if has_validation else {}),
    }
    draft.comments[("trainer", "epochs")] = "passes over the training rows"
    draft.comments[("trainer", "learning_rate")] = "for LoRA; larger models need less"
    if has_validation:
        draft.comments[("trainer", "early_stop")] = "evaluations without improvement"
