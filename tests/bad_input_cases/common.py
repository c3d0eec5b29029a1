"""Frequent errors of all kinds."""

from __future__ import annotations

import json

from tests.bad_input_cases.case import (
    CHECK,
    GOOD,
    MANIFEST,
    ROWS,
    RUN,
    Case,
    changed,
    custom_metric,
    forgetting,
    rows_with_tests,
)

CASES = [
    Case("missing config", CHECK, config=None),
    Case("config is not UTF-8", CHECK, config=GOOD.replace("Positive", "Café").encode("latin-1")),
    Case("broken YAML", CHECK, config=changed("metric: exact_match", "metric: [label")),
    Case("tab in YAML", CHECK, config=changed("  tasks:", "\ttasks:")),
    Case("empty config", CHECK, config=""),
    Case("unknown key, top level", CHECK, config=changed("base_model:", "basemodel:")),
    Case("unknown key in trainer", CHECK, config=changed("epochs: 1", "epochs: 1, lerning_rate: 0.1")),
    Case("unknown key, deep", CHECK, config=changed("epochs: 1", "learning_rate_scheduler: {warmup: 0.1}")),
    Case(
        "a warm-up longer than the training",
        CHECK,
        config=changed("epochs: 1", "epochs: 2, learning_rate_scheduler: {warmup_evaluations: 9}"),
    ),
    Case(
        "a plateau with too few evaluations",
        CHECK,
        config=changed("epochs: 1", "learning_rate_scheduler: {reduce_on_plateau: 1}"),
    ),
    Case(
        "a plateau without validation rows",
        CHECK,
        config=changed("epochs: 1", "learning_rate_scheduler: {reduce_on_plateau: 1}").replace(
            "  tasks:", "  split: {validation: 0}\n  tasks:"
        ),
    ),
    Case(
        "one_cycle with one step",
        CHECK,
        config=changed("epochs: 1", "train_steps: 1, learning_rate_scheduler: {decay: one_cycle}"),
    ),
    Case(
        "an old setting of an 8-bit optimizer",
        CHECK,
        config=changed("epochs: 1", "optimizer: {type: adamw_8bit, percentile_clipping: 100}"),
    ),
    Case("unknown key in a task", CHECK, config=changed("metric:", "metrics:")),
    Case("wrong type", CHECK, config=changed("epochs: 1", "epochs: many")),
    Case(
        "wrong type in pipeline",
        CHECK,
        config=changed("metric: exact_match", "metric: exact_match\n      max_new_tokens: few"),
    ),
    Case(
        "several errors",
        CHECK,
        config=changed("epochs: 1", "epochs: many, lerning_rate: 1").replace("metric:", "metrics:"),
    ),
    Case("override of an unknown key", "run job.yaml trainer.epoch=2"),
    Case("unknown metric", CHECK, config=changed("metric: exact_match", "metric: rogue")),
    Case("missing custom metric", CHECK, config=changed("metric: exact_match", "metric: mine:score")),
    Case("custom metric that raises", CHECK, **custom_metric("raises", "return row['missing']")),
    Case("custom metric that returns a text", CHECK, **custom_metric("a_text", "return 'good'")),
    Case("custom metric that returns NaN", CHECK, **custom_metric("not_a_number", "return float('nan')")),
    Case(
        "custom metric that fails on an empty completion",
        CHECK,
        **custom_metric("share", "return len(reference) / len(completion)"),
    ),
    Case("custom metric with two parameters", CHECK, **custom_metric("two", "return 1", "completion, reference")),
    Case(
        "normalize of another metric",
        CHECK,
        config=changed("metric: exact_match", "metric: rouge\n      normalize: false"),
    ),
    Case("unknown base model", RUN, config=changed("smollm2-135m-instruct", "smolm2-135m-instruct")),
    Case(
        "base model is an empty folder", RUN, config=changed("smollm2-135m-instruct", "./model"), others={"model/x": ""}
    ),
    Case("data file missing", CHECK, rows=None),
    Case("data file is not UTF-8", CHECK, rows=ROWS.replace("fine", "schön").encode("latin-1")),
    Case("invalid JSON", CHECK, rows=ROWS.replace('cracked."', "cracked.", 1)),
    Case("JSON line without an object", CHECK, rows=ROWS + "[1, 2]\n"),
    Case(
        "CSV with a ragged row",
        CHECK,
        config=changed("rows.jsonl", "rows.csv"),
        rows=None,
        others={"rows.csv": "review,label\nGood cup,good\nBad, very bad cup,bad\n"},
    ),
    Case(
        "invalid Parquet file",
        CHECK,
        config=changed("rows.jsonl", "rows.parquet"),
        rows=None,
        others={"rows.parquet": "x"},
    ),
    Case(
        "unsupported file format",
        CHECK,
        config=changed("rows.jsonl", "rows.xlsx"),
        rows=None,
        others={"rows.xlsx": "x"},
    ),
    Case("missing column", CHECK, config=changed("{review}", "{text}")),
    *(
        Case(f"unit tests: {title}", CHECK, config=changed("metric: exact_match", "metric: unit_tests"), rows=rows)
        for title, rows in {
            "none": ROWS,
            "a bare comparison": rows_with_tests("f(1) == 2"),
            "a list of bare comparisons in a cell": rows_with_tests("['f(1) == 2', 'f(2) == 3']"),
            "check that is never called": rows_with_tests("def check(candidate):\n    assert candidate(1) == 2"),
            "an assert in parentheses": rows_with_tests(["assert (f(1) == 2, 'wrong')"]),
            "asserts on constants": rows_with_tests("x = 2\nassert x == 2"),
            "inputs and outputs": rows_with_tests({"inputs": ["1"], "outputs": ["2"]}),
            "pytest": rows_with_tests(
                "import pytest\ndef test_f():\n    with pytest.raises(ValueError):\n        f(-1)"
            ),
            "not Python": rows_with_tests(">>> f(1)\n2"),
        }.items()
    ),
    Case("empty data file", CHECK, rows=""),
    Case("one row", CHECK, rows=ROWS.split("\n")[0] + "\n"),
    Case(
        "a row of 100 kB",
        "preview job.yaml",
        rows=ROWS + json.dumps({"review": "word " * 20_000, "label": "good"}) + "\n",
    ),
    Case("a row without a value", CHECK, rows=ROWS + '{"review": null, "label": "good"}\n'),
    Case("unknown split", CHECK, rows=ROWS + '{"review": "Fine.", "label": "good", "split": "dev"}\n'),
    Case("unknown strategy", CHECK, config=forgetting("ecw")),
    Case("a setting of a strategy misspelt", CHECK, config=forgetting("{strategy: ewc, ewc: {wieght: 3}}")),
    Case("settings of an unused strategy", CHECK, config=forgetting("{strategy: ewc, si: {weight: 3}}")),
    Case(
        "retention eval without rows",
        CHECK,
        config=forgetting("{evals: {mine: {kind: text_nll, data: none.jsonl}}}"),
        others={"none.jsonl": ""},
    ),
    Case(
        "retention eval with rows of another kind",
        CHECK,
        config=forgetting("{evals: {mine: {kind: multiple_choice, data: rows.jsonl}}}"),
    ),
    Case("max_regression of 0", CHECK, config=forgetting("{eval_steps: 10, max_regression: {text: 0}}")),
    Case(
        "gate on an unknown retention eval",
        CHECK,
        config=GOOD.replace("  tasks:", "  report: {gates: {txt: {max_drop: 1}}}\n  tasks:"),
    ),
    Case(
        "continue_from a run that does not exist",
        RUN,
        config=GOOD.replace("  tasks:", "  continue_from: runs/first\n  tasks:"),
    ),
    Case("sweep of an unknown strategy", "sweep job.yaml --strategies none,ecw"),
    Case("name with a slash", "run job.yaml --name a/b"),
    Case("run folder of another config", RUN, others={"runs/mine/manifest.json": MANIFEST}),
    Case("damaged manifest", RUN, others={"runs/mine/manifest.json": "{"}),
    Case("report without a run", "report runs/none"),
    Case(
        "predict with a run that has no model",
        "predict runs/mine rows.jsonl",
        others={"runs/mine/manifest.json": MANIFEST},
    ),
]
