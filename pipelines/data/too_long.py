"""The key `too_long`: what happens to rows with more tokens than the limit."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from pipelines.config.job import Job
from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.readers import RowErrors
from pipelines.data.sources import SPLITS
from pipelines.data.tokenize_rows import TokenizedExample

MIN_KEPT_AT_WORD = 0.5
"""The least share of the text that fits that must remain if it is cut at a space; else it is cut inside a word."""
JOINERS = ("\u200d", "\ufe0e", "\ufe0f")
"""A zero-width joiner and variation selectors: they belong to the character before them."""


@dataclass
class TooLongRows:
    """Leaves out or shortens rows that are longer than the limit, as `too_long` of their task says.

    Args:
        job: the job whose tasks the rows belong to.
        prompt_format: tokenizes the shortened rows.
        max_length: the most tokens that a row may have, prompt and completion together.

    Attributes:
        dropped, truncated: the number of rows that were left out, and whose prompt was shortened, per (task, split).
        dropped_reasoning: the number of training rows with reasoning that were left out, per task.
    """

    job: Job
    prompt_format: PromptFormat
    max_length: int
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    truncated: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped_reasoning: Counter[str] = field(default_factory=Counter)
    _kept: Counter[tuple[str, str]] = field(default_factory=Counter)

    def apply(self, rows: Iterable[TokenizedExample]) -> Iterator[TokenizedExample]:
        """Yields the rows that remain, in the same order. Those of a task with `refuse` are unchanged.

        Raises DataError after the last row: for rows that are too long without their prompt, and for tasks of which no
        training or test row remains.
        """
        errors = RowErrors()
        last_dropped: dict[tuple[str, str], Example] = {}
        for row in rows:
            example = row.example
            group = (example.task, example.split)
            mode = self.job.too_long(example.task)
            if len(row.input_ids) <= self.max_length or mode == "refuse":
                self._kept[group] += 1
                yield row
            elif mode == "drop":
                self.dropped[group] += 1
                self.dropped_reasoning[example.task] += example.split == "train" and bool(example.reasoning)
                last_dropped[group] = example
            elif (shortened := self._truncate(row)) is not None:
                self.truncated[group] += 1
                self._kept[group] += 1
                yield shortened
            else:
                errors.add(
                    example.file,
                    example.row_number,
                    f"task {example.task}: is longer than the limit of {self.max_length:,} tokens even without its "
                    "prompt, which is all that too_long: truncate_prompt shortens; shorten the completion, or write "
                    "too_long: drop",
                )
        for (task, split), example in last_dropped.items():
            if split != "validation" and not self._kept[task, split]:
                errors.add(
                    example.file,
                    example.row_number,
                    f"task {task}: too_long: drop leaves no {split} rows: all {self.dropped[task, split]:,} are longer "
                    f"than the limit of {self.max_length:,} tokens",
                )
        errors.raise_if_any()

    def notes(self, task: str) -> list[str]:
        """What happened to the rows of a task, as sentences for the report."""
        limit = f"longer than the limit of {self.max_length:,} tokens"
        changes = [(self.dropped, f"{limit} and left out"), (self.truncated, f"{limit}; their prompts were shortened")]
        notes = []
        for counts, what in changes:
            split_counts = self.per_split(counts, task)
            if total := sum(split_counts.values()):
                splits = ", ".join(f"{count:,} {split}" for split, count in split_counts.items())
                verb = "row was" if total == 1 else "rows were"
                notes.append(f"{total:,} {verb} {what} ({splits}).")
        return notes

    def per_split(self, counts: Counter[tuple[str, str]], task: str) -> dict[str, int]:
        """The counts of a task per split, without zeros."""
        return {split: counts[task, split] for split in SPLITS if counts[task, split]}

    @property
    def warnings(self) -> list[str]:
        """The notes of all tasks, each with the name of its task."""
        return [f"task {name}: {note.rstrip('.')}" for name in self.job.pipeline.tasks for note in self.notes(name)]

    def _truncate(self, row: TokenizedExample) -> TokenizedExample | None:
        """The row with as much of its last user turn as fits; None if not even a word or a character of it does.

        The longest column in the text is cut, so that a question or an instruction after it stays. Where that is not
        enough, or no column is in the text, the text is cut at its end, before what the template writes after its last
        column.
        """
        example = row.example
        text = _user_text(example)
        if text is None:
            return None
        limit = self._limit(example)
        return next(filter(None, (self._cut(example, text, part, limit) for part in self._parts(example, text))), None)

    def _limit(self, example: Example) -> int:
        """The most tokens of a shortened row. A test row leaves room for a completion of its limit."""
        if example.split != "test":
            return self.max_length
        room = self.job.completion_limit(example.task, with_reasoning=example.reasoning is not None)
        reference = len(self.prompt_format.encode_text(example.completion or ""))
        spare = self.prompt_format.context_length - room + reference
        # If completions may be about as long as the context, half of it is left for the prompt.
        return min(self.max_length, max(spare, self.prompt_format.context_length // 2))

    def _parts(self, example: Example, text: str) -> Iterator[tuple[str, str, str]]:
        """Ways to cut `text`: what stays before, the text that is cut at its end, what stays after."""
        columns = [value for value in example.fields.values() if isinstance(value, str) and value.strip()]
        contained = [value for value in columns if value in text]
        if contained:
            yield text.rpartition(max(contained, key=len))
        end = self._end_of_template(example.task)
        yield ("", text.removesuffix(end), end) if text.endswith(end) else ("", text, "")

    def _cut(self, example: Example, text: str, part: tuple[str, str, str], limit: int) -> TokenizedExample | None:
        """The example with the middle one of three parts of its text cut such that at most `limit` tokens remain."""
        before, body, after = part
        fitting: TokenizedExample | None = None
        low, high = 0, len(body)  # `low` characters fit, `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            shortened = self._encode(example, text, before + body[:middle] + after)
            if len(shortened.input_ids) <= limit:
                low, fitting = middle, shortened
            else:
                high = middle
        if fitting is None:
            return None
        for length in _better_cuts(body, low):
            shortened = self._encode(example, text, before + body[:length] + after)
            if len(shortened.input_ids) <= limit:
                return shortened
        return fitting if body[:low].strip() else None

    def _encode(self, example: Example, text: str, shortened_text: str) -> TokenizedExample:
        """The example with another text in its last user turn; too long to fit if the template refuses it."""
        shortened = _with_user_text(example, text, shortened_text)
        try:
            encoded = self.prompt_format.encode(shortened.conversation)
        except ChatTemplateError:
            return TokenizedExample([0] * (self.max_length + 1), [], shortened)
        return TokenizedExample(encoded.input_ids, encoded.supervised_spans, shortened)

    def _end_of_template(self, task: str) -> str:
        """The text after the last column of the template of a task's prompt, such as an instruction."""
        template = self.job.pipeline.tasks[task].prompt
        if not isinstance(template, str):
            return ""
        if self.job.pipeline.tasks[task].template == "jinja":
            return re.split(r"[%}#]\}", template)[-1].removesuffix("\n")  # Jinja drops a last line end
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError:  # the syntax of another template language
            return ""
        end = ""
        for literal, name, _, _ in parts:
            end = end + literal if name is None else ""
        return end


def _better_cuts(text: str, length: int) -> Iterator[int]:
    """Lengths of at most `length` to cut `text` at: after a word, or else between two characters that a reader sees."""
    if length == len(text) or text[length].isspace():
        yield len(text[:length].rstrip())
        return
    word_end = len(text[:length].rsplit(None, 1)[0]) if len(text[:length].split(None, 1)) > 1 else 0
    if word_end and word_end >= MIN_KEPT_AT_WORD * length:
        yield word_end
    while length > 1 and _continues(text, length):
        length -= 1
    if text[:length].strip():
        yield length


def _continues(text: str, position: int) -> bool:
    """Whether the character at `position` belongs to the one before it."""
    return bool(unicodedata.combining(text[position])) or text[position] in JOINERS or text[position - 1] == "\u200d"


def _user_text(example: Example) -> str | None:
    """The text of the last user turn before the completion; None if there is none."""
    if example.turns is None:
        return example.prompt
    index = _last_user_turn(example.turns)
    content = None if index is None else example.turns.messages[index].get("content")
    return content if isinstance(content, str) else None


def _with_user_text(example: Example, text: str, shortened: str) -> Example:
    if example.turns is None:
        return replace(example, prompt=shortened)
    messages = list(example.turns.messages)
    index = _last_user_turn(example.turns)
    if index is None:
        raise ValueError(f"{example.source_location} has no user turn")
    messages[index] = {**messages[index], "content": shortened}
    before, found, after = example.prompt.rpartition(text)
    prompt = f"{before}{shortened}{after}" if found else example.prompt
    return replace(example, prompt=prompt, turns=replace(example.turns, messages=messages))


def _last_user_turn(conversation: Conversation) -> int | None:
    """The index of the last user turn before the last supervised turn."""
    end = conversation.supervised_turns[-1] if conversation.supervised_turns else len(conversation.messages)
    return next((i for i in range(end - 1, -1, -1) if conversation.messages[i].get("role") == "user"), None)
