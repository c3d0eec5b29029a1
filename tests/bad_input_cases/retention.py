"""Retention evals, sample prompts and prompts for `predict`."""

from __future__ import annotations

from tests.bad_input_cases.case import (
    CHECK,
    ROW,
    Case,
    forgetting,
    retention_eval,
    sample_prompts,
)

CASES = [
    Case(
        "a missing file of a retention eval",
        CHECK,
        config=forgetting("{evals: {mine: {kind: text_nll, data: none.jsonl}}}"),
    ),
    Case("a retention eval of an unknown kind", CHECK, **retention_eval("multiple_choise", ROW)),
    Case(
        "a task eval whose unit tests assert nothing",
        CHECK,
        **retention_eval(
            "task",
            '{"q": "Add.", "a": "x", "tests": "f(1) == 2"}\n',
            ', prompt: "{q}", completion: "{a}", metric: unit_tests',
        ),
    ),
    Case("a text_nll eval without texts", CHECK, **retention_eval("text_nll", ROW)),
    Case("a kl eval without instructions", CHECK, **retention_eval("kl", ROW)),
    Case(
        "an answer out of range",
        CHECK,
        **retention_eval("multiple_choice", '{"question": "1 + 1", "choices": ["1", "2"], "answer": 2}\n'),
    ),
    Case(
        "a single choice",
        CHECK,
        **retention_eval("multiple_choice", '{"question": "1 + 1", "choices": ["2"], "answer": 0}\n'),
    ),
    Case(
        "an answer as text",
        CHECK,
        **retention_eval("multiple_choice", '{"question": "1 + 1", "choices": ["1", "2"], "answer": "2"}\n'),
    ),
    Case("a task eval without a prompt", CHECK, **retention_eval("task", ROW)),
    Case(
        "a task eval with an unknown column",
        CHECK,
        **retention_eval("task", ROW, ', prompt: "{text}", completion: "{label}"'),
    ),
    Case("sample prompts without a prompt", CHECK, **sample_prompts('{"title": "free"}\n')),
    Case(
        "sample prompts with a limit that is a text",
        CHECK,
        **sample_prompts('{"prompt": "Why?", "max_new_tokens": "12"}\n'),
    ),
    Case("sample prompts with a limit below 1", CHECK, **sample_prompts('{"prompt": "Why?", "max_new_tokens": -1}\n')),
    Case("sample prompts with a title that is not text", CHECK, **sample_prompts('{"prompt": "Why?", "title": 1}\n')),
    Case("sample prompts with an unpaired surrogate", CHECK, **sample_prompts('{"prompt": "Why \\ude00?"}\n')),
    Case("a retention eval with an unpaired surrogate", CHECK, **retention_eval("text_nll", '{"text": "\\ud83d"}\n')),
    Case(
        "a replay file without completions",
        CHECK,
        config=forgetting("{strategy: replay, replay: {data: general.jsonl}}"),
        others={"general.jsonl": '{"prompt": "Why?"}\n'},
    ),
    Case(
        "a retention eval with an unknown metric",
        CHECK,
        **retention_eval("task", ROW, ', prompt: "{review}", completion: "{label}", metric: rogue'),
    ),
    Case(
        "a retention eval with a loss as metric",
        CHECK,
        **retention_eval("task", ROW, ', prompt: "{review}", completion: "{label}", metric: nll'),
    ),
    Case("sample prompts with an unknown key", CHECK, **sample_prompts('{"prompt": "Why?", "max_tokens": 3}\n')),
]
