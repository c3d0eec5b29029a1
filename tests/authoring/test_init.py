"""`alfine init`: the columns that it finds in files of many shapes, and what it says about files that it cannot use."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipelines.authoring import sample as sample_module
from pipelines.checks.job import check_job
from pipelines.cli import main
from pipelines.commands.init import task_name
from pipelines.config.job import load_job
from pipelines.data.row_formats import fill_row
from pipelines.importing.yaml_writer import SCHEMA_FILE, editor_line
from pipelines.modeling import base_models
from tests.modeling.test_module_names import GPT2, write_model

RNG = random.Random(0)
NOUNS = ["lamp", "boat", "garden", "letter", "kettle", "river", "window", "train", "violin", "market"]
Rows = list[dict[str, Any]]


def text(index: int, words: int = 12) -> str:
    rng = random.Random(index)
    return " ".join([*(rng.choice(NOUNS) for _ in range(words)), str(index)])


def rows_of(**columns: Any) -> Rows:
    """60 rows; a column is a function of the index of the row, or a constant."""
    return [{name: make(index) if callable(make) else make for name, make in columns.items()} for index in range(60)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; the tokenizer of the packaged model is not used, since it may not be there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base_models, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path


def write(rows: Rows, name: str = "rows.jsonl") -> str:
    path = Path(name)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix in (".csv", ".tsv"):
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("".join(mark.join(f'"{cell}"' for cell in line) + "\n" for line in lines), encoding="utf-8")
    elif path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for line in [list(rows[0]), *(list(row.values()) for row in rows)]:
            book.active.append(line)
        book.save(path)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return name


def init(*arguments: str, answers: str | None = None) -> Result:
    return CliRunner().invoke(main, ["init", *arguments], input=answers)


def task_of(data: str, *arguments: str) -> dict[str, Any]:
    """The task of the job that is written for a file; the job passes `alfine check`."""
    result = init(data, *arguments)
    assert result.exit_code == 0, result.output
    job = load_job(task_name(data) + ".yaml")
    check_job(job)
    (task,) = job.pipeline.tasks.values()
    return task.model_dump(exclude_defaults=True)


def uses(task: dict[str, Any], *parts: str) -> bool:
    """Whether the prompt names the columns, in this order."""
    places = [task["prompt"].find(part) for part in parts]
    return -1 not in places and places == sorted(places)


LABELS = ["refund", "delivery", "other"]
CASES: dict[str, tuple[Rows, str, list[str], str, str]] = {
    "labels": (
        rows_of(id=lambda i: i, text=text, label=lambda i: LABELS[i % 3], url=lambda i: f"https://a.b/{i}"),
        "rows.csv",
        ["Answer with one of: delivery, other, refund.", "{text}"],
        "{label}",
        "exact_match",
    ),
    "tickets": (
        rows_of(subject=lambda i: text(i, 3), body=lambda i: text(99 + i), team=lambda i: LABELS[i % 3]),
        "rows.tsv",
        ["What is the team?", "Subject: {subject}", "Body: {body}"],
        "{team}",
        "exact_match",
    ),
    "numbers as labels": (
        rows_of(review=text, stars=lambda i: 1 + i % 5),
        "rows.xlsx",
        ["1, 2, 3, 4, 5", "{review}"],
        "{stars}",
        "exact_match",
    ),
    "booleans": (
        rows_of(question=text, correct=lambda i: i % 3 == 0),
        "rows.parquet",
        ["Answer with one of: false, true.", "{question}"],
        "{correct}",
        "exact_match",
    ),
    "two sentences": (
        rows_of(premise=text, hypothesis=lambda i: text(i + 100), label=lambda i: i % 3),
        "rows.jsonl",
        ["Premise: {premise}", "Hypothesis: {hypothesis}"],
        "{label}",
        "exact_match",
    ),
    "list of labels": (
        rows_of(title=text, topics=lambda i: LABELS[: 1 + i % 3]),
        "rows.jsonl",
        ["one or more of: delivery, other, refund", "{{ title }}"],
        '{{ topics | join(", ") }}',
        "multilabel_f1",
    ),
    "labels with semicolons": (
        rows_of(text=text, tags=lambda i: ";".join(LABELS[: 1 + i % 3])),
        "rows.jsonl",
        ["{{ text }}"],
        '{{ tags | replace(";", ", ") }}',
        "multilabel_f1",
    ),
    "rows without a label": (
        rows_of(title=text, topics=lambda i: LABELS[: i % 4]),
        "rows.jsonl",
        ["one or more of: delivery, other, refund, or with none.", "{{ title }}"],
        '{{ (topics or "") | join(", ") or "none" }}',
        "multilabel_f1",
    ),
    "most rows without a label": (
        rows_of(title=text, topics=lambda i: [LABELS[i % 3], LABELS[i % 2]] if i % 4 == 0 else []),
        "rows.jsonl",
        ["{{ title }}"],
        '{{ (topics or "") | join(", ") or "none" }}',
        "multilabel_f1",
    ),
    "cells without a label": (
        rows_of(text=text, tags=lambda i: ",".join(LABELS[: i % 4])),
        "rows.csv",
        ["{{ text }}"],
        '{{ tags or "none" }}',
        "multilabel_f1",
    ),
    "cells without a label, with semicolons": (
        rows_of(text=text, tags=lambda i: ";".join(LABELS[: i % 4]) or None),
        "rows.jsonl",
        ["{{ text }}"],
        '{{ (tags or "") | replace(";", ", ") or "none" }}',
        "multilabel_f1",
    ),
    "a column per label": (
        rows_of(comment=text, toxic=lambda i: i % 2, rude=lambda i: int(i % 3 == 0), funny=lambda i: int(i % 5 == 0)),
        "rows.csv",
        ["toxic", "{{ comment }}"],
        '{{ ["toxic"',
        "multilabel_f1",
    ),
    "Alpaca": (
        rows_of(instruction=text, input=lambda i: text(i) if i % 2 else "", output=lambda i: text(i + 7, 20)),
        "rows.json",
        ["{{ instruction }}{% if input %}\n\n{{ input"],
        "{{ output }}",
        "rouge",
    ),
    "question with context": (
        rows_of(
            title=lambda i: f"T{i // 6}",
            question=text,
            context=lambda i: text(i // 6, 60),
            answers=lambda i: {"text": [text(i, 2)], "answer_start": [i]},
        ),
        "rows.jsonl",
        ["{{ context }}", "{{ question }}"],
        "{{ answers.text[0] }}",
        "exact_match",
    ),
    "summaries": (
        rows_of(
            document=lambda i: text(i, 80),
            summary=lambda i: text(i, 25),
            id=lambda i: f"{i:08x}-0000-0000-0000-{i:012x}",
        ),
        "rows.jsonl",
        ["Summarize the text.", "{document}"],
        "{summary}",
        "rouge",
    ),
    "translation": (
        rows_of(translation=lambda i: {"en": text(i), "ro": text(i + 9)}),
        "rows.jsonl",
        ["Translate from English to Romanian.", "{{ translation.en }}"],
        "{{ translation.ro }}",
        "chrf",
    ),
    "code": (
        rows_of(
            description=text,
            code=lambda i: f"def f(x):\n    y = x + {i}\n    return y\n",
            tests=lambda i: [f"assert f(1) == {i + 1}"],
        ),
        "rows.jsonl",
        ["Write the code.", "{description}"],
        "{code}",
        "unit_tests",
    ),
    "preferences": (
        rows_of(prompt=text, chosen=lambda i: text(i + 5, 20), rejected=lambda i: text(i + 6, 20)),
        "rows.jsonl",
        ["{prompt}"],
        "{chosen}",
        "rouge",
    ),
    "preferences of messages": (
        rows_of(
            conversations=lambda i: [
                {"from": "human", "value": text(i)},
                {"from": "gpt", "value": "So?"},
                {"from": "human", "value": "Yes"},
            ],
            chosen=lambda i: {"from": "gpt", "value": text(i + 5)},
            rejected=lambda i: {"from": "gpt", "value": text(i + 6)},
        ),
        "rows.jsonl",
        ["{conversations}"],
        "{chosen}",
        "rouge",
    ),
    "choices": (
        rows_of(query=text, choices=lambda i: [text(i, 2), text(i + 1, 2), "none"], gold=lambda i: i % 3),
        "rows.jsonl",
        ["{{ query }}", "for choice in choices", "Answer with a letter."],
        '{{ "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[gold] }}',
        "exact_match",
    ),
    "numbers": (
        rows_of(width=lambda i: i / 7, height=lambda i: 3 + i % 11, species=lambda i: LABELS[i % 3]),
        "rows.csv",
        ["Width: {width}", "Height: {height}"],
        "{species}",
        "exact_match",
    ),
    "odd names": (
        rows_of(**{"Review Text!": text, "a:b {c}": lambda i: LABELS[i % 3]}),
        "rows.jsonl",
        ['{{ row["Review Text!"] }}'],
        '{{ row["a:b {c}"] }}',
        "exact_match",
    ),
    "several columns of labels": (
        rows_of(
            genre=lambda i: f"g {i % 40}",
            sentence1=text,
            sentence2=lambda i: text(i + 100),
            label1="",
            gold_label=lambda i: LABELS[i % 3],
        ),
        "rows.tsv",
        ["Sentence1: {sentence1}", "Sentence2: {sentence2}"],
        "{gold_label}",
        "exact_match",
    ),
    "questions without an answer": (
        rows_of(question=text, context=text, answers=lambda i: {"text": [text(i, 2)] if i % 3 else []}),
        "rows.jsonl",
        ["{{ context }}", "{{ question }}"],
        '{{ answers.text[0] if answers.text else "No answer." }}',
        "exact_match",
    ),
    "a column with the name row": (
        rows_of(row=lambda i: {"text": text(i), "by": f"user {i}"}, label=lambda i: LABELS[i % 3]),
        "rows.jsonl",
        ["{{ row.text }}"],
        "{{ label }}",
        "exact_match",
    ),
    "labels that look like Jinja": (
        rows_of(text=text, label=lambda i: ["{x}", "{% if %}", "a}"][i % 3]),
        "rows.jsonl",
        ["What is the label?", "{text}"],
        "{label}",
        "exact_match",
    ),
    "labels with braces": (
        rows_of(text=text, label=lambda i: ["{x}", "b", "a}"][i % 3]),
        "rows.jsonl",
        ["a}}, b, {{x}}.", "{text}"],
        "{label}",
        "exact_match",
    ),
    "tools that are none": (
        rows_of(tools=lambda i: LABELS[i % 3], prompt=text, completion=lambda i: text(i + 1, 20)),
        "rows.jsonl",
        ["{prompt}"],
        "{completion}",
        "rouge",
    ),
    "a text twice, and where it is from": (
        rows_of(
            text=text,
            text_clean=lambda i: text(i, 10),
            source=lambda i: LABELS[i % 2],
            sentiment=lambda i: LABELS[i % 3],
        ),
        "rows.jsonl",
        ["What is the sentiment? Answer with one of: delivery, other, refund.\n\n{text}"],
        "{sentiment}",
        "exact_match",
    ),
    "no known names": (
        rows_of(nr=lambda i: i, eins=lambda i: text(i, 30), zwei=lambda i: LABELS[i % 3]),
        "rows.csv",
        ["{eins}"],
        "{zwei}",
        "exact_match",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_columns_of_a_file_are_found(name: str) -> None:
    rows, file, prompt, completion, metric = CASES[name]
    task = task_of(write(rows, file))
    assert uses(task, *prompt), task["prompt"]
    assert task["completion"].startswith(completion)
    assert task.get("metric", "rouge") == metric


@pytest.mark.parametrize("column", ["messages", "chat_log"])
@pytest.mark.parametrize("keys", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_conversation_is_found(column: str, keys: tuple[str, str, str, str], as_text: bool) -> None:
    role, content, user, assistant = keys

    def turns(index: int) -> Any:
        messages = [{role: user, content: text(index)}, {role: assistant, content: text(index + 1)}]
        return json.dumps(messages) if as_text else messages

    task = task_of(write(rows_of(**{"id": lambda i: i, column: turns})))
    assert task["messages"] == column and "prompt" not in task


def test_the_yaml_explains_itself_and_the_output_says_what_was_assumed(folder: Path) -> None:
    rows = rows_of(id=lambda i: i, text=text, label=lambda i: LABELS[i % 3], topic=lambda i: LABELS[i % 2])
    result = init(write(rows, "my tickets.csv"), "--output", "jobs/a.yaml")
    assert result.exit_code == 0 and result.stdout == ""
    for line in (
        "my tickets.csv: 60 rows with the columns id, text, label, topic",
        "completion  label: 3 labels (refund, delivery, other)",
        "validation and test: 6 of 60 rows each, drawn",
        "note: topic could be the answer as well: edit prompt and completion, or use --interactive",
        "note: not used: id, topic",
        "estimated as 3 bytes per token: no tokenizer of smollm2-135m-instruct on this machine",
        "alfine check jobs/a.yaml",
    ):
        assert line in result.stderr
    yaml = Path("jobs/a.yaml").read_text(encoding="utf-8")
    assert yaml.startswith("# Written by alfine init from my tickets.csv: 60 rows.\n#   alfine check jobs/a.yaml")
    assert "  tasks:\n    my_tickets:\n" in yaml
    assert "# exact_match | multilabel_f1 | rouge" in yaml
    again = init("my tickets.csv", "--output", "jobs/a.yaml")
    assert again.exit_code == 2
    assert again.stderr == "error: jobs/a.yaml exists already and is not overwritten; name another file with --output\n"
    assert Path("jobs/a.yaml").read_text(encoding="utf-8") == yaml


def test_the_job_can_be_printed(folder: Path) -> None:
    result = init(write(rows_of(text=text, label=lambda i: i % 2)), "--output", "-", "--task", "mine")
    assert "    mine:\n" in result.stdout and not list(folder.glob("*.yaml"))


def test_an_editor_finds_the_schema(folder: Path) -> None:
    data = write(rows_of(text=text, label=lambda i: i % 2))
    line = "# yaml-language-server: $schema="
    init(data, "--output", "a.yaml")
    assert line not in Path("a.yaml").read_text(encoding="utf-8")
    assert CliRunner().invoke(main, ["schema", "--output", "config.schema.json"]).exit_code == 0
    init(data, "--output", "b.yaml")
    assert f"{line}config.schema.json\n" in Path("b.yaml").read_text(encoding="utf-8")
    assert editor_line(SCHEMA_FILE.parents[1] / "jobs" / "mine" / "c.yaml") == [
        "yaml-language-server: $schema=../../docs/config.schema.json"
    ]


def test_splits_of_the_rows_are_used() -> None:
    split = ["train", "train", "validation", "test"]
    result = init(write(rows_of(text=text, label=lambda i: i % 3, split=lambda i: split[i % 4])))
    assert "split       from the column split: train 30, validation 15, test 15" in result.stderr
    assert load_job("rows.yaml").document.location("pipeline", "split") == load_job("rows.yaml").document.location(
        "pipeline"
    )


def test_files_of_a_folder_are_splits(folder: Path) -> None:
    for name in ("train", "test"):
        Path("set").mkdir(exist_ok=True)
        write(rows_of(text=text, label=lambda i: i % 3), f"set/{name}.csv")
    result = init("set")
    assert "from files: train 60, test 60; validation drawn from train" in result.stderr
    check_job(load_job("set.yaml"))


def test_of_a_large_file_the_first_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "MAX_ROWS", 50)
    result = init(write(rows_of(text=text, label=lambda i: LABELS[i % 3])))
    assert "rows.jsonl is large: its first 50 rows were read; alfine check reads all of them" in result.stderr
    assert "the first 50 rows" in result.stderr
    task = load_job("rows.yaml").pipeline.tasks["rows"]
    assert "one of" not in task.prompt  # other labels may follow
    assert task.too_long == "drop"
    monkeypatch.setattr(sample_module, "MAX_ROWS", 10**6)
    monkeypatch.setattr(sample_module, "MAX_CHARACTERS", 1000)
    assert "rows.jsonl is large" in init("rows.jsonl", "--output", "b.yaml").stderr


def test_very_long_texts_get_a_limit() -> None:
    rows = rows_of(text=lambda i: text(i, 10_000 if i == 7 else 12), label=lambda i: LABELS[i % 3])
    result = init(write(rows))
    job = load_job("rows.yaml")
    assert job.max_sequence_length == 2048 and job.pipeline.tasks["rows"].too_long == "drop"
    assert "note: rows of more than 2,048 tokens are left out (1 of 60)" in result.stderr


def test_prompts_are_shortened_if_most_rows_are_very_long() -> None:
    result = init(write(rows_of(text=lambda i: text(i, 3000), label=lambda i: LABELS[i % 3])))
    base = write_model(Path("base"), max_position_embeddings=2048)
    result = init("rows.jsonl", "--base-model", str(base), "--output", "b.yaml")
    job = load_job("b.yaml")
    assert job.max_sequence_length == 2048 and job.pipeline.tasks["rows"].too_long == "truncate_prompt"
    assert "note: the prompts of rows of more than 2,048 tokens are shortened (60 of 60)" in result.stderr


def test_free_text_in_a_column_of_labels_is_text() -> None:
    result = init(write(rows_of(text=text, label=lambda i: text(i + 3))))
    assert "label has 60 different values in 60 rows, too many for labels" in result.stderr
    assert load_job("rows.yaml").pipeline.tasks["rows"].metric == "rouge"


def test_rows_of_one_context_stay_together() -> None:
    task = task_of(write(CASES["question with context"][0], "rows.jsonl"))
    assert task["cluster_by"] == "context"


@pytest.mark.parametrize("name", ["user_id", "document", "customer", "patient", "conversationId"])
def test_rows_of_one_user_or_document_stay_together(name: str) -> None:
    rows = rows_of(**{name: lambda i: f"u{i // 4}"}, text=text, label=lambda i: LABELS[i % 3])
    result = init(write(rows))
    assert load_job("rows.yaml").pipeline.tasks["rows"].cluster_by == name
    assert f"cluster by  {name}: 15 values, the rows of one are in one split" in result.stderr
    assert "not used" not in result.stderr
    check_job(load_job("rows.yaml"))
    for row in rows[:5]:
        row[name] = None
    result = init(write(rows), "--output", "b.yaml")
    assert f"keep them in one split with cluster_by: {name}, after the 5 rows without one have got it" in result.stderr
    assert load_job("b.yaml").pipeline.tasks["rows"].cluster_by is None


def test_an_id_that_may_group_the_rows_is_noted() -> None:
    result = init(write(rows_of(post_id=lambda i: i // 4, text=text, label=lambda i: LABELS[i % 3])))
    assert "several rows have the same post_id (15 values): if they belong together" in result.stderr
    assert load_job("rows.yaml").pipeline.tasks["rows"].cluster_by is None


@pytest.mark.parametrize(
    "column",
    [
        {"label_id": lambda i: i % 15},  # the number of the label
        {"user": lambda i: i % 3},  # few groups
        {"user": lambda i: i},  # one row each
        {"user": lambda i: max(0, i - 20)},  # one large group
        {"author": lambda i: text(i // 4)},  # a text
    ],
)
def test_other_columns_are_no_groups_of_rows(column: dict[str, Any]) -> None:
    result = init(write(rows_of(**column, text=text, label=lambda i: f"l{i % 15}")))
    assert load_job("rows.yaml").pipeline.tasks["rows"].cluster_by is None
    assert "cluster_by" not in result.stderr


@pytest.mark.parametrize("extra", [{}, {"label": lambda i: i % 2}, {"label": lambda i: LABELS[i % 3]}])
def test_notes_agree_with_the_job(extra: dict[str, Any]) -> None:
    flags: dict[str, Any] = {name: lambda i, n=n: int(i % n == 0) for n, name in enumerate(["mild", "rude", "mad"], 2)}
    result = init(write(rows_of(id=lambda i: i, system=lambda i: text(i, 3), comment=text, **flags, **extra)))
    assert result.exit_code == 0, result.output
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    yaml = Path("rows.yaml").read_text(encoding="utf-8").partition("tasks:")[2].partition("split:")[0]
    (unused,) = [note.removeprefix("note: not used: ").split(", ") for note in notes if "not used" in note]
    columns = ["id", "system", "comment", *flags, *extra]
    used = {name for name in columns if f"{{{name}" in yaml or f"{{{{ {name}" in yaml or f"if {name} |" in yaml}
    assert set(unused) == set(columns) - used
    for note in notes:
        if "could be the answer as well" in note:
            assert not any(name in note for name in used)


def test_a_note_on_many_columns_names_a_few() -> None:
    columns: dict[str, Any] = {f"c{n}": lambda i, n=n: "abc"[(i * n + n * n) % 3] for n in range(300)}
    result = init(write(rows_of(text=text, **columns)))
    (tie,) = [line for line in result.stderr.splitlines() if "could be the answer as well" in line]
    assert len(tie) < 200 and " more could be" in tie


def test_a_column_split_that_holds_something_else_is_one_line() -> None:
    result = init(write(rows_of(text=text, label=lambda i: LABELS[i % 3], split=lambda i: text(i, 4))))
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert "its column `split` holds no split" in result.stderr and "rename the column" in result.stderr


def test_columns_in_json_are_rows(folder: Path) -> None:
    Path("rows.json").write_text(
        json.dumps({"text": [text(i) for i in range(60)], "label": [LABELS[i % 3] for i in range(60)]})
    )
    assert "note: rows.json: holds columns, not rows; read as 60 rows" in init("rows.json").stderr
    check_job(load_job("rows.yaml"))


def test_an_error_comes_with_what_was_detected_in_the_file() -> None:
    book = openpyxl.Workbook()
    book.active.title = "Read me"
    for line in (["about"], ["the data"], ["of 2024"]):
        book.active.append(line)
    book.create_sheet("Tickets").append(["text", "label"])
    book.save("rows.xlsx")
    error, note = init("rows.xlsx").stderr.splitlines()
    assert error.startswith("error: rows.xlsx: has one column")
    assert note == "note: rows.xlsx: read from its sheet 'Read me'; left out: 'Tickets'; the first one is read"
    Path("rows.csv").write_text("text;label\na;b\nc\n")
    result = init("rows.csv")
    assert result.stderr.splitlines()[1:] == ["note: rows.csv: its cells are separated by semicolons"]


@pytest.mark.parametrize("names", [("A", "B", "C", "D"), ("option_a", "option_b", "option_c", "option_d")])
@pytest.mark.parametrize("missing", [False, True])
def test_the_options_of_a_question_are_part_of_the_prompt(names: tuple[str, ...], missing: bool) -> None:
    rows = rows_of(question=lambda i: text(i), answer=lambda i: "ABC"[i % 3])  # D is never right
    for index, row in enumerate(rows):
        row |= {name: f"{name} of {index}" for name in names}
        if missing and index % 2:
            row[names[3]] = None
    result = init(write(rows), "--output", "job.yaml")
    assert result.exit_code == 0, result.output
    assert "not used" not in result.output
    job = load_job(Path("job.yaml"))
    (task,) = job.pipeline.tasks.values()
    (filled,) = fill_row(task, rows[2], None)
    assert filled.prompt.endswith(
        "".join(f"\n{letter}. {name} of 2" for letter, name in zip("ABCD", names, strict=True))
    )
    (filled,) = fill_row(task, rows[1], None)
    assert ("D. " in filled.prompt) != missing and filled.completion == "B"


def test_a_few_rows_have_no_early_stop() -> None:
    rows = rows_of(review=lambda i: text(i), label=lambda i: ["good", "bad"][i % 2])[:30]
    assert init(write(rows), "--output", "few.yaml").exit_code == 0
    assert "early_stop" not in Path("few.yaml").read_text(encoding="utf-8")


def test_a_file_with_500_columns() -> None:
    columns: dict[str, Any] = {f"x{n}": lambda i, n=n: (i * n) % 17 for n in range(499)}
    result = init(write(rows_of(**columns, outcome=lambda i: LABELS[i % 3]), "rows.csv"))
    assert result.exit_code == 0, result.output
    assert "and 488 more" in result.stderr and "not used: x0, x9, x10" in result.stderr
    assert load_job("rows.yaml").pipeline.tasks["rows"].prompt.count("{x") == 8


def test_two_answers_are_a_tie() -> None:
    result = init(write(rows_of(prompt=text, response=lambda i: text(i + 1, 20), summary=lambda i: text(i + 2, 20))))
    assert "note: summary could be the answer as well" in result.stderr


def test_a_guess_without_a_name_is_called_a_guess() -> None:
    result = init(write(CASES["no known names"][0]))
    assert "note: no column has a usual name of an answer (label, output, …): zwei is a guess" in result.stderr


@pytest.mark.parametrize("header", ["12,5", "it was a very good film and we all liked it,good", "x1,good"])
def test_a_table_without_a_header_is_noted(header: str) -> None:
    Path("rows.csv").write_text(header + "\n" + "".join(f"{text(i)},{['good', 'bad'][i % 2]}\n" for i in range(60)))
    assert "is the first row a header?" in init("rows.csv").stderr


def test_copies_of_rows_and_small_files_are_noted() -> None:
    result = init(write([{"text": f"a {i % 15}", "label": i % 3} for i in range(30)]))
    assert "note: copies of other rows: 15" in result.stderr and "note: only 30 rows" in result.stderr


def test_another_encoding_is_noted() -> None:
    Path("rows.csv").write_bytes(
        b"text;label\n"
        + "".join(f"größer {text(i)};{'süß' if i % 2 else 'herb'}\n" for i in range(40)).encode("cp1252")
    )
    result = init("rows.csv")
    assert result.exit_code == 0, result.output
    assert "is not UTF-8; read as Windows-1252" in result.stderr and "separated by semicolons" in result.stderr


BAD: dict[str, tuple[Any, str]] = {
    "no rows": ("text,label\n", "rows.csv: has no rows"),
    "empty file": ("", "rows.csv: has no rows"),
    "one column": ("text\na\nb\n", "rows.csv: has one column, so there is no answer to learn"),
    "constant output": (
        "text,label\n" + "".join(f"{text(i)},same\n" for i in range(20)),
        "rows.csv: column label has the same value in all rows ('same'): there is nothing to learn",
    ),
    "only ids": (
        "id,date\n" + "".join(f"{i},2024-01-{i + 1:02}\n" for i in range(20)),
        "rows.csv: no column can be the answer (id: an id or a date, date: an id or a date); add a column",
    ),
    "answer missing in some rows": (
        "text,label\n" + "".join(f"{text(i)},{'' if i % 5 == 0 else 'ab'[i % 2]}\n" for i in range(20)),
        "rows.csv:2: column label has no value in 4 of 20 rows; fill it in, or drop these rows",
    ),
    "cells missing": ("text,label\na,b\nc\n", "rows.csv:3: has 1 cells, the header has 2"),
    "one label": (
        "text,label\n" + "".join(f"{text(i)},{'b' if i == 7 else 'a'}\n" for i in range(20)),
        "task rows: every test row has the label 'a'; there is nothing to learn or to compare",
    ),
    "columns of different lengths": (
        {"text": ["a", "b", "c"], "label": ["x", "y"]},
        "rows.json: the object holds columns with different numbers of values (text: 3, label: 2), so they make no rows",
    ),
    "nested answers": (
        [{"id": i, "text": text(i), "notes": [{"by": "a", "label": i}], "x": 3} for i in range(20)],
        "rows.json: no column can be the answer (id: an id or a date, notes: a list, x: one value); add a column",
    ),
    "turns as rows": (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "rows.json: its rows are the turns of a conversation; write one conversation per row",
    ),
    "no prompt": (
        "id,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(20)),
        "rows.csv: the answer is in the column label, and no other column can be the prompt (id: an id or a date); add",
    ),
    "the same prompt in all rows": (
        [{"text": "same", "label": "ab"[i % 2]} for i in range(20)],
        "rows.json: the answer is in the column label, and no other column can be the prompt (text: one value); add",
    ),
    "a column without a name": (
        [{"": text(i), "label": "ab"[i % 2]} for i in range(20)],
        "rows.json: one of its columns has no name; give it one",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_one_line(name: str, folder: Path) -> None:
    content, message = BAD[name]
    file = "rows.csv" if isinstance(content, str) else "rows.json"
    Path(file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    result = init(file)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
    assert result.stderr.startswith(f"error: {message}")
    assert not list(folder.glob("*.yaml*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "no such file: 'none.csv'"),
        (["rows.jsonl", "--task", "a b"], "--task 'a b': the name of a task has letters, digits, _ and -"),
        (["rows.jsonl", "--base-model", "smol"], "model 'smol' is neither a packaged model"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], message: str) -> None:
    write(rows_of(text=text, label=lambda i: i % 2))
    result = init(*arguments)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {message}")


def test_another_base_model_gets_target_modules_that_it_has(folder: Path) -> None:
    base = write_model(folder / "base", GPT2, "gpt2")
    data = write(rows_of(text=text, label=lambda i: i % 2))
    result = init(data, "--base-model", str(base))
    assert result.exit_code == 0, result.output
    assert "note: the modules that are adapted are those that PEFT chooses for this model" in result.stderr
    job = load_job("rows.yaml")
    assert job.adapter is not None and "target_modules" not in job.adapter
    assert job.trainer["learning_rate"] == 0.0002


def test_thoughts_are_trained_with_a_model_that_has_markers(folder: Path) -> None:
    data = write(rows_of(question=text, rationale=lambda i: text(i, 90), answer=lambda i: text(i, 2)))
    assert "note: rationale may hold the thoughts before the answers" in init(data, "--output", "a.yaml").stderr
    base = write_model(folder / "base")
    tokens = [{"id": 1, "content": "<think>"}, {"id": 2, "content": "</think>"}]
    (base / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    result = init(data, "--base-model", str(base), "--output", "b.yaml")
    assert result.exit_code == 0, result.output
    job = load_job("b.yaml")
    task = job.pipeline.tasks["rows"]
    assert task.reasoning == "{rationale}" and task.max_reasoning_tokens is not None and job.max_sequence_length
    assert 150 < task.max_reasoning_tokens < job.max_sequence_length


def test_the_questions_have_the_guesses_as_defaults() -> None:
    data = write(
        rows_of(text=text, note=lambda i: text(i + 1), label=lambda i: LABELS[i % 3], team=lambda i: LABELS[i % 2])
    )
    assert init(data, "--interactive", "--output", "a.yaml", answers="").exit_code == 0
    assert init(data, "--interactive", "--output", "b.yaml", answers="\n\n\n\n\n").exit_code == 0
    assert init(data, "--output", "c.yaml").exit_code == 0
    plain = Path("c.yaml").read_text().replace("c.yaml", "X")
    assert (
        Path("a.yaml").read_text().replace("a.yaml", "X") == plain == Path("b.yaml").read_text().replace("b.yaml", "X")
    )


def test_an_answer_replaces_the_guess() -> None:
    data = write(
        rows_of(text=text, note=lambda i: text(i + 1), label=lambda i: LABELS[i % 3], team=lambda i: LABELS[i % 2])
    )
    result = init(data, "--interactive", answers="tema\nteam\nnote\n\nchrf\n\n")
    assert result.exit_code == 0, result.output
    assert "there is no 'tema'; did you mean team?" in result.stderr
    task = load_job("rows.yaml").pipeline.tasks["rows"]
    assert (task.completion, task.metric) == ("{team}", "chrf")
    assert "{note}" in task.prompt and "{text}" not in task.prompt and "delivery, refund" in task.prompt


def test_several_columns_of_flags_are_an_answer() -> None:
    flags: dict[str, Any] = {name: lambda i, n=n: int(i % n == 0) for n, name in enumerate(["mild", "rude", "mad"], 2)}
    data = write(rows_of(comment=text, author=lambda i: text(i, 2), **flags))
    result = init(data, "--interactive", answers="rude, comment\nmad,rude, mad\nauthor\n")
    assert result.exit_code == 0, result.output
    assert "several columns are an answer only if they hold 0 and 1, which comment does not" in result.stderr
    task = load_job("rows.yaml").pipeline.tasks["rows"]
    assert "{{ author }}" in task.prompt and "comment" not in task.prompt
    assert '"mad" if mad' in task.completion and '"rude" if rude' in task.completion and "mild" not in task.completion
    assert "note: not used: comment, mild" in result.stderr


KIND_ANSWERS = [
    "",
    "labels",
    "several labels",
    "choices",
    "translation",
    "code",
    "short text",
    "long text",
    "conversation",
]


@pytest.mark.parametrize("kind", KIND_ANSWERS)
@pytest.mark.parametrize("name", ["labels", "list of labels", "Alpaca", "choices", "a column per label", "code"])
def test_any_kind_gives_a_job_or_an_error(name: str, kind: str) -> None:
    result = init(write(*CASES[name][:2]), "--interactive", answers=f"\n\n{kind}\n")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code:
        assert result.exit_code == 2 and "error: " in result.stderr.splitlines()[-1], result.output
    else:
        check_job(load_job(task_name(CASES[name][1]) + ".yaml"))


def test_nonsense_answers_are_asked_again_until_the_input_ends() -> None:
    data = write(rows_of(text=text, label=lambda i: LABELS[i % 3], team=lambda i: LABELS[i % 2]))
    plain = init(data, "--output", "a.yaml")
    rng = random.Random(3)
    words = [
        ",",
        ", ,",
        "\x1b[2J",
        "text,",
        "label",
        "team, team",
        "none",
        "\ud7ff",
        "{}",
        "0",
        "a" * 5000,
        "yes",
        "42",
    ]
    for index in range(40):
        answers = "".join(f"{rng.choice(words)}\n" for _ in range(rng.randrange(12)))
        result = init(data, "--interactive", "--output", f"b{index}.yaml", answers=answers)
        assert result.exit_code in (0, 2) and (result.exception is None or isinstance(result.exception, SystemExit))
        assert "\x1b" not in result.stderr.replace("\x1b[2J\n", "")
        if result.exit_code == 0:
            check_job(load_job(f"b{index}.yaml"))
    assert plain.exit_code == 0


def test_answers_that_are_no_text_and_a_closed_input_do_not_crash() -> None:
    data = write(rows_of(text=text, label=lambda i: LABELS[i % 3]))
    command = [sys.executable, "-m", "pipelines.cli", "init", data, "--interactive", "--output"]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run([*command, "a.yaml"], input=b"\xff\n", env=strict, capture_output=True, check=False)
    assert result.returncode == 2 and result.stderr.endswith(b"error: the answer is not UTF-8 text\n")
    result = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command, "b.yaml"], capture_output=True, check=False)
    assert result.returncode == 0 and Path("b.yaml").exists(), result.stderr


def test_an_output_that_cannot_be_written_is_refused_before_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(rows_of(text=text, label=lambda i: LABELS[i % 3]))
    for output, message in (
        (f"{data}/job.yaml", "is not a folder"),
        ("a" * 300, "file name too long"),
        (".", "exists already"),
    ):
        result = init(data, "--interactive", "--output", output)
        assert result.exit_code in (1, 2) and message in result.stderr and "Column" not in result.stderr
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, whom no permission stops
    result = init(data, "--interactive", "--output", "new/job.yaml")
    assert result.exit_code == 1 and "permission denied; use a writable folder" in result.stderr
    assert "Column" not in result.stderr and not Path("new").exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("a/b/tickets.csv.gz", "tickets"),
        ("hub:owner/my.set@main:config:train", "my"),
        ("data/*.jsonl", "task"),
        ("Übung 3.xlsx", "bung_3"),
        ("folder/", "folder"),
    ],
)
def test_the_name_of_the_task(data: str, name: str) -> None:
    assert task_name(data) == name


def test_torch_is_not_imported() -> None:
    data = write(rows_of(text=text, label=lambda i: i % 2))
    code = (
        "import sys; from click.testing import CliRunner; from pipelines.cli import main\n"
        f"result = CliRunner().invoke(main, ['init', {data!r}])\n"
        "sys.exit(str({'torch', 'ludwig', 'pandas'} & set(sys.modules) or result.exit_code or ''))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stderr.strip() == ""
