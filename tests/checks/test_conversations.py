"""One conversation of each form is rendered by `check`, and what the template refuses is located at its row."""

import pytest

from pipelines.checks.conversations import ConversationChecks
from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import DataError
from tests.tiny_tokenizers import CHATML, make_tokenizer

CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
STRICT = (
    "{% for m in messages %}{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)


def checks(template, conversations):
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.chat_template = template
    checked = ConversationChecks(PromptFormat(tokenizer))
    for row, roles in enumerate(conversations, 1):
        messages = [
            {"role": role.rstrip("+"), "content": "x", **({"tool_calls": [CALL]} if role.endswith("+") else {})}
            for role in roles.split()
        ]
        turns = Conversation(messages, (len(messages) - 1,))
        checked.observe(
            Example(prompt="", task="t", split="train", file="rows.jsonl", row_number=row, fields={}, turns=turns)
        )
    return checked


@pytest.mark.parametrize(
    ("template", "conversations", "problem"),
    [
        (
            CHATML,
            ["user assistant"] * 3 + ["user assistant+ tool assistant"] * 2,
            "rows.jsonl:4: task t: .* tool calls",
        ),
        (STRICT, ["user assistant", "user assistant user user assistant"], "rows.jsonl:2: .*roles must alternate"),
    ],
)
def test_a_later_row_that_the_template_refuses(template, conversations, problem):
    with pytest.raises(DataError, match=problem) as caught:
        checks(template, conversations).raise_if_any()
    assert len(caught.value.problems) == 1 and "such rows)" not in str(caught.value)


def test_rows_that_the_template_supports():
    checks(CHATML, ["user assistant", "system user assistant", "user assistant user assistant"]).raise_if_any()
