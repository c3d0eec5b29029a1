"""Files of rows."""

from __future__ import annotations

import json

from tests.bad_input_cases.case import (
    CHECK,
    GOOD,
    ROW,
    ROWS,
    Case,
    changed,
    csv,
    retention_eval,
)

_PROMPT = GOOD[GOOD.index("      prompt:") : GOOD.index("      completion:")]
_COMPLETION = GOOD[GOOD.index("      completion:") :].splitlines(keepends=True)[0]
_METRIC = next(line for line in GOOD.splitlines(keepends=True) if "metric:" in line)
MESSAGES = GOOD.replace(_PROMPT, "      messages: messages\n").replace(_COMPLETION, "").replace(_METRIC, "")
DETECTED = MESSAGES.replace("      messages: messages\n", "")

CASES = [
    Case("data is a folder", CHECK, rows=None, others={"rows.jsonl/x": ""}),
    Case("JSON array instead of lines", CHECK, rows=json.dumps([{"review": "Fine.", "label": "good"}] * 3, indent=1)),
    Case("single quotes", CHECK, rows=ROWS + "{'review': 'Fine.', 'label': 'good'}\n"),
    Case("comma after the object", CHECK, rows=ROWS + ROW.replace("}", "},")),
    Case("two objects on a line", CHECK, rows=ROWS + ROW.strip() + ROW),
    Case("a truncated line", CHECK, rows=ROWS + ROW[:-12]),
    Case("not a number", CHECK, rows=ROWS + '{"review": NaN, "label": "good"}\n'),
    Case(
        "an empty prompt",
        CHECK,
        config=changed("Positive or negative?\\n", ""),
        rows=ROWS + '{"review": "  ", "label": "good"}\n',
    ),
    Case("an empty completion", CHECK, rows=ROWS + '{"review": "Fine.", "label": ""}\n'),
    Case("a column name in another case", CHECK, config=changed("{review}", "{Review}")),
    Case(
        "a column missing in every row", CHECK, rows="".join('{"text": "Fine.", "label": "good"}\n' for _ in range(9))
    ),
    Case("a zip file named JSONL", CHECK, rows=b"PK\x03\x04\x14\x00\x00\x00\x08\x00\xd5\xa3"),
    Case("UTF-16 rows without a mark", CHECK, rows=ROWS.encode("utf-16-le")),
    Case(
        "a missing split file", CHECK, config=changed("data: rows.jsonl", "data: {train: rows.jsonl, test: test.jsonl}")
    ),
    Case("CSV with an unnamed column", CHECK, **csv("review,\nFine,good\n")),
    Case("CSV with a duplicate column", CHECK, **csv("review,review\nFine,good\n")),
    Case("CSV with only a header", CHECK, **csv("review,label\n")),
    Case("CSV with semicolons", CHECK, **csv("review;label\nFine;good\n")),
    Case("CSV with an unclosed quote", CHECK, **csv('review,label\n"Fine,good\nBad,bad\n')),
    Case("CSV in Latin-1", CHECK, **csv("review,label\nCaf\xe9,good\n".encode("latin-1"))),
    Case("CSV with tabs", CHECK, **csv("review\tlabel\nFine\tgood\n")),
    Case("CSV with a duplicate column up to a space", CHECK, **csv("review, review\nFine, good\n")),
    Case("concatenated CSV files", CHECK, **csv("review,label\nFine,good\nreview,label\nBad,bad\n")),
    Case("CSV with carriage returns", CHECK, **csv("review,label\rFine,good\r")),
    Case("an unpaired surrogate", CHECK, rows=ROWS + '{"review": "Fine \\ud83d", "label": "good"}\n'),
    Case("a NUL character", CHECK, rows=ROWS + '{"review": "F\\u0000i\\u0000n\\u0000e", "label": "good"}\n'),
    Case("an unescaped tab", CHECK, rows=ROWS + ROW.replace("Fine.", "Fine.\t")),
    Case("a number of 5,000 digits", CHECK, rows=ROWS + ROW.replace('"Fine."', "9" * 5000)),
    Case("a number out of range", CHECK, rows=ROWS + ROW.replace('"Fine."', "1e999")),
    Case("infinity", CHECK, rows=ROWS + ROW.replace('"Fine."', "-Infinity")),
    Case("a duplicate key in one object", CHECK, rows=ROWS + ROW.replace("}", ', "label": "bad"}')),
    Case("deeply nested lists", CHECK, rows=ROWS + ROW.replace('"Fine."', "[" * 5000 + "]" * 5000)),
    Case(
        "a conversation in a column",
        CHECK,
        config=changed("{review}", "{messages}"),
        rows='{"messages": [{"role": "user", "content": "Fine?"}], "label": "good"}\n' * 9,
    ),
    Case("a list in a column", CHECK, rows=ROWS + ROW.replace('"good"', '["good", "fair"]')),
    Case("an object in a column", CHECK, rows=ROWS + ROW.replace('"good"', '{"team": "good"}')),
    Case(
        "a column name that is invalid in braces",
        CHECK,
        config=changed("{review}", "{time}"),
        rows='{"time:utc": "Fine.", "label": "good"}\n' * 9,
    ),
    Case(
        "an empty column in the system prompt",
        CHECK,
        config=changed("metric: exact_match", 'metric: exact_match\n      system: "Judge {kind}."'),
        rows=ROWS + '{"review": "Fine.", "label": "good", "kind": null}\n',
    ),
    Case("a pattern without a match", CHECK, config=changed("data: rows.jsonl", "data: rows-*.jsonl")),
    Case(
        "a conversation without an answer",
        CHECK,
        config=MESSAGES,
        rows='{"messages": [{"role": "user", "content": "Fine?"}]}\n' * 9,
    ),
    Case(
        "an unknown role",
        CHECK,
        config=MESSAGES,
        rows='{"messages": [{"role": "usr", "content": "Fine?"}, {"role": "assistant", "content": "Yes."}]}\n' * 9,
    ),
    Case("a column of messages that is missing", CHECK, config=MESSAGES),
    Case("rows of no known format", CHECK, config=DETECTED),
    Case("preferences", CHECK, config=DETECTED, rows='{"prompt": "a", "chosen": "b", "rejected": "c"}\n'),
    Case("text for pretraining", CHECK, config=DETECTED, rows='{"text": "a"}\n'),
    Case(
        "Jinja without template: jinja",
        CHECK,
        config=changed("{review}", "{% if review %}{review}{% endif %}"),
    ),
    Case("the answer in the prompt", CHECK, config=changed("{review}", "{review} ({label})")),
    Case(
        "the answer in the prompt of a retention eval",
        CHECK,
        **retention_eval("task", ROW, ', prompt: "{review} {label}", completion: "{label}"'),
    ),
    Case(
        "one file for two splits",
        CHECK,
        config=changed("data: rows.jsonl", "data: {train: rows.jsonl, test: rows.jsonl}"),
    ),
    Case(
        "a split column that contradicts the file",
        CHECK,
        config=changed("data: rows.jsonl", "data: {train: rows.jsonl, test: test.jsonl}"),
        others={"test.jsonl": ROW.replace("}", ', "split": "train"}')},
    ),
    Case("an unknown name of a split", CHECK, rows=ROWS.replace("}", ', "split": "val"}')),
    Case("an empty test split", CHECK, rows=ROWS.replace("}", ', "split": "train"}')),
    Case("pipeline.split.test is 0", CHECK, config=GOOD.replace("  tasks:", "  split: {test: 0}\n  tasks:")),
    Case(
        "a missing cluster column",
        CHECK,
        config=changed("metric: exact_match", "metric: exact_match\n      cluster_by: cup"),
    ),
    Case(
        "a cluster column without a value",
        CHECK,
        config=changed("metric: exact_match", "metric: exact_match\n      cluster_by: cup"),
        rows=ROWS.replace("}", ', "cup": null}'),
    ),
    Case(
        "unit tests in another column",
        CHECK,
        config=changed("metric: exact_match", "metric: unit_tests"),
        rows=ROWS.replace("}", ', "test": "assert f()"}'),
    ),
]
