"""Rows as the model will see them: special tokens visible, what is trained in another colour, lengths per task."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from pipelines.prepare import PreparedRow
from pipelines.prompts import PromptFormat
from pipelines.report.tables import Column, cell, print_table
from pipelines.report.wording import printable


def show_rows(rows: Sequence[PreparedRow], prompts: PromptFormat, console: Console, per_task: int) -> None:
    """`per_task` training rows of every task, then a table of lengths in tokens."""
    console.print(Text.assemble("read by the model  ", ("trained: the answer and its end", "bold green")))
    for task in dict.fromkeys(row.example.task for row in rows):
        of_task = [row for row in rows if row.example.task == task and row.example.split == "train"]
        for row in of_task[:per_task]:
            console.rule(Text(f"{task}  {row.example.place}"), align="left")
            console.print(_coloured(row, prompts))
    _print_lengths(rows, console)


def _coloured(row: PreparedRow, prompts: PromptFormat) -> Text:
    special = set(prompts.tokenizer.all_special_ids)
    decode = prompts.tokenizer.decode
    text = Text(overflow="fold")
    parts = ((row.input_ids[: row.supervised_from], ""), (row.input_ids[row.supervised_from :], "bold green"))
    for ids, style in parts:
        plain: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in special:
                plain.append(token)
                continue
            # Whole runs are decoded together: a letter may be spread over several tokens.
            text.append(printable(str(decode(plain))), style=style)
            plain = []
            if token is not None:
                text.append(str(decode([token])), style="reverse " + (style or "dim"))
    return text


def _print_lengths(rows: Sequence[PreparedRow], console: Console) -> None:
    columns = [Column("task", words=True), Column("split", left=True)]
    columns += [Column(name) for name in ("rows", "shortest", "median", "longest", "trained tokens")]
    table: list[list[str | Text]] = []
    for task, split in dict.fromkeys((row.example.task, row.example.split) for row in rows):
        group = [row for row in rows if (row.example.task, row.example.split) == (task, split)]
        lengths = sorted(len(row.input_ids) for row in group)
        trained = sum(len(row.input_ids) - row.supervised_from for row in group)
        figures = (len(group), lengths[0], lengths[len(lengths) // 2], lengths[-1], trained)
        table.append([cell(task), split, *(f"{figure:,}" for figure in figures)])
    console.print(Text("Lengths in tokens", style="italic"))
    print_table(columns, table, console)
