"""Checks of conversations without a tokenizer: the chat template renders one row of each form."""

from __future__ import annotations

from itertools import pairwise

from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Message
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.readers import RowErrors

MAX_FORMS = 200
"""The most forms of conversations that are rendered: rendering every row would take longer than reading it."""
Form = tuple[str, bool, frozenset[tuple[str, str]]]


class ConversationChecks:
    """Keeps the first conversation of each form, and renders them after the last row.

    Two conversations have the same form if the same kinds of turns follow each other in them: what a template refuses
    or drops, such as a turn of a tool or two turns of the user, depends on that.
    """

    def __init__(self, prompt_format: PromptFormat) -> None:
        self.prompt_format = prompt_format
        self._examples: dict[Form, Example] = {}

    def observe(self, example: Example) -> None:
        """Takes notice of one row."""
        if example.turns is None or len(self._examples) == MAX_FORMS:
            return
        kinds = ["", *map(_kind, example.turns.messages)]
        form = (example.task, bool(example.turns.tools), frozenset(pairwise(kinds)))
        self._examples.setdefault(form, example)

    def raise_if_any(self) -> None:
        """Raises DataError with the first row of each kind of conversation that the chat template refuses."""
        errors, messages = RowErrors(), set()
        for example in self._examples.values():
            try:
                self.prompt_format.render(example.conversation)
            except ChatTemplateError as error:
                message = f"task {example.task}: {error}"
                if message not in messages:
                    errors.add(example.file, example.row_number, message)
                messages.add(message)
        errors.raise_if_any()


def _kind(message: Message) -> str:
    return f"{message['role']} with calls" if message.get("tool_calls") else str(message["role"])
