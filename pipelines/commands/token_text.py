"""Tokenized rows as text for a terminal or a log: every turn, what of it is supervised, and its special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from pipelines.console.plain_text import count
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.data.turn_ranges import turn_ranges
from pipelines.modeling.token_sequences import Span
from pipelines.report.formatting import printable

SUPERVISED_STYLE = "bold green"
GUTTER, SUPERVISED_GUTTER = "    ", "  > "
"""What begins the lines of text that is not supervised, and of text that is, which a log shows without colors."""
SHOWN_START, SHOWN_END = 400, 200
"""Characters of the start and of the end of a long part of a turn that are shown."""
NEWLINE = "⏎"
"""What stands for a newline at the edge of a part."""


def print_rows(
    rows: Sequence[TokenizedExample],
    prompt_format: PromptFormat,
    console: Console,
    rows_per_task: int,
    shorten: bool = True,
) -> None:
    """Prints the turns of `rows_per_task` training rows of every task, decoded from their tokens.

    shorten: leave out the middle of long texts.
    """
    legend = Text.assemble(
        ("Lines with > are supervised", SUPERVISED_STYLE), f"; {NEWLINE} is a newline before or after a part"
    )
    console.print(legend)
    for task in dict.fromkeys(row.example.task for row in rows):
        task_rows = [row for row in rows if row.example.task == task and row.example.split == "train"]
        for row in task_rows[:rows_per_task]:
            console.rule(Text(f"{task}  {row.example.source_location}"), align="left")
            print_row(row, prompt_format, console, shorten)


def print_row(row: TokenizedExample, prompt_format: PromptFormat, console: Console, shorten: bool) -> None:
    """Prints the turns of a row, decoded from their tokens. shorten: leave out the middle of long texts."""
    for number, turn in enumerate(turn_ranges(row.example.conversation, row, prompt_format), 1):
        heading = f"{number} {turn.role}, {count(turn.end - turn.start, 'token')}"
        if turn.supervised:
            heading += f", {turn.supervised[1] - turn.supervised[0]:,} supervised"
        elif turn.role == "assistant":
            heading += ", not supervised"
        console.print(Text(heading, style="dim"))
        for (start, end), is_supervised in _parts(turn.start, turn.end, turn.supervised):
            text = decoded(row.input_ids[start:end], prompt_format, SUPERVISED_STYLE if is_supervised else "")
            text = _with_visible_newlines(_shortened(text) if shorten else text)
            _print_indented(text, SUPERVISED_GUTTER if is_supervised else GUTTER, console)


def _parts(start: int, end: int, supervised: Span | None) -> Iterable[tuple[Span, bool]]:
    """The ranges of tokens of a turn that are not empty, each with whether it is supervised."""
    first, last = supervised or (end, end)
    parts = (((start, first), False), ((first, last), True), ((last, end), False))
    return [(part, is_supervised) for part, is_supervised in parts if part[0] < part[1]]


def decoded(ids: Sequence[int], prompt_format: PromptFormat, style: str) -> Text:
    """The text of tokens. Special tokens are highlighted."""
    special_ids = set(prompt_format.tokenizer.all_special_ids)
    decode = prompt_format.tokenizer.decode
    text = Text(overflow="fold")
    pending: list[int] = []
    for token in [*ids, None]:
        if token is not None and token not in special_ids:
            pending.append(token)
            continue
        # Ordinary tokens are decoded together: a character may consist of several tokens.
        text.append(printable(str(decode(pending))), style=style)
        pending = []
        if token is not None:
            text.append(str(decode([token])), style="reverse " + (style or "dim"))
    return text


def _shortened(text: Text) -> Text:
    """The text without its middle, if that is long."""
    omitted = len(text) - SHOWN_START - SHOWN_END
    if omitted < SHOWN_END:
        return text
    note = Text(f" […{omitted:,} characters…] ", style="dim")
    return Text.assemble(text[:SHOWN_START], note, text[-SHOWN_END:], overflow="fold")


def _with_visible_newlines(text: Text) -> Text:
    """The text with a sign for each newline at its start and at its end."""
    body = text.plain.strip("\n")
    leading = len(text) - len(text.plain.lstrip("\n")) if body else 0
    trailing = len(text) - leading - len(body)
    middle = text[leading : leading + len(body)] if body else Text()
    return Text.assemble((NEWLINE * leading, "dim"), middle, (NEWLINE * trailing, "dim"), overflow="fold")


def _print_indented(text: Text, gutter: str, console: Console) -> None:
    style = SUPERVISED_STYLE if gutter == SUPERVISED_GUTTER else ""
    for line in text.split("\n", allow_blank=True):
        for part in line.wrap(console, max(console.width - len(gutter), 1), overflow="fold"):
            part.rstrip()
            console.print(Text.assemble((gutter, style), part), soft_wrap=True)
