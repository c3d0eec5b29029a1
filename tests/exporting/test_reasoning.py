"""Exports of reasoning models: plain `apply_chat_template` gives the prompts of the run, with or without thoughts."""

import pytest
from transformers import AutoTokenizer

from tests.exporting.test_export import exported
from tests.exporting.test_targets import check_of
from tests.test_reasoning_runs import USER, rows_of, start

__all__ = ["start"]
pytestmark = pytest.mark.ludwig


@pytest.mark.parametrize(
    ("kind", "with_reasoning", "kwargs", "end"),
    [
        ("qwen3_like", True, {}, ""),
        ("qwen3_like", False, {}, "<think>\n\n</think>\n\n"),
        ("qwen3_like", False, {"enable_thinking": False}, "<think>\n\n</think>\n\n"),
        ("r1_like", True, {}, "<think>\n"),
        ("r1_like", False, {}, None),
    ],
)
def test_prompts_are_those_of_the_run(start, kind, with_reasoning, kwargs, end):
    rows = rows_of() if with_reasoning else [{**one, "reasoning": None} for one in rows_of()]
    _, run = start(kind, rows, chat_template_kwargs=kwargs, max_reasoning_tokens=20)
    merged = exported(run.folder)
    check = check_of(merged)
    assert check["passed"] and check["equal_prompts"] == check["rows"] == 4, check
    assert check["equal_answers"] + check["ties"] == 4
    tokenizer = AutoTokenizer.from_pretrained(merged)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi?"}], add_generation_prompt=True, tokenize=False
    )
    if end is not None:
        assert text == USER.format("hi") + end
    whole = [{"role": "user", "content": "hi?"}, {"role": "assistant", "content": "ho"}]
    assert "ho<|im_end|>" in tokenizer.apply_chat_template(whole, tokenize=False)


def test_tasks_that_differ_in_reasoning_name_their_variables(start):
    plain = [{**one, "reasoning": None} for one in rows_of()]
    _, run = start("qwen3_like", plain, chat_template_kwargs={"enable_thinking": False})
    assert "Tasks differ" not in (exported(run.folder) / "README.md").read_text()
