"""Commands and their options, and faults of the machine."""

from __future__ import annotations

from tests.bad_input_cases.case import (
    GOOD,
    MANIFEST,
    RUN,
    Case,
)

TRAINED = {
    "runs/mine/manifest.json": '{"format_version": 2, "stages": {"train": {"inputs": "x"}}}',
    "runs/mine/config.yaml": GOOD,
}
"""A run whose model is not there, but whose config is: enough for what is found before a model is loaded."""

CASES = [
    Case("init of a file that does not exist", "init row.jsonl"),
    Case("init over a file", "init rows.jsonl --output job.yaml"),
    Case("init of a file without rows", "init a.csv", others={"a.csv": "text,label\n"}),
    Case("init of a file with one column", "init a.csv", others={"a.csv": "text\nGood.\nBad.\n"}),
    Case(
        "init of a file whose answers are all the same",
        "init a.csv",
        others={"a.csv": "text,label\n" + "".join(f"Cup {index},good\n" for index in range(20))},
    ),
    Case(
        "init of a file without an answer in some rows",
        "init a.csv",
        others={"a.csv": "text,label\n" + "".join(f"Cup {i},{'' if i % 5 == 3 else 'ab'[i % 2]}\n" for i in range(20))},
    ),
    Case(
        "init of a file without a prompt",
        "init a.csv",
        others={"a.csv": "id,label\n" + "".join(f"{index},{'ab'[index % 2]}\n" for index in range(20))},
    ),
    Case(
        "init of a conversation with a row per turn",
        "init a.json",
        others={"a.json": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]'},
    ),
    Case("init with the name of a task that is none", "init rows.jsonl --task my.task"),
    Case("init with an unknown base model", "init rows.jsonl --base-model smollm"),
    Case("schema over another file", "schema --output rows.jsonl"),
    Case("predict without a run", "predict runs/none rows.jsonl"),
    Case("serve without a run", "serve runs/none"),
    Case("serve of a run without a model", "serve runs/mine", others={"runs/mine/manifest.json": MANIFEST}),
    Case("serve with replicas without Ray", "serve runs/mine --replicas 2"),
    Case("predict of a file that does not exist", "predict runs/mine new.jsonl", others=TRAINED),
    Case("predict of a pattern without a file", "predict runs/mine new/*.csv", others=TRAINED),
    Case("predict with an unknown task", "predict runs/mine rows.jsonl --task sentimnt", others=TRAINED),
    Case("an output of an unknown format", "predict runs/mine rows.jsonl --output out.txt", others=TRAINED),
    Case("an output over its input", "predict runs/mine rows.jsonl --output ./rows.jsonl", others=TRAINED),
    Case("an output that is a folder", "predict runs/mine rows.jsonl --output runs", others=TRAINED),
    Case(
        "an output whose interrupted rows are another program's",
        "predict runs/mine rows.jsonl --output out.csv",
        others={**TRAINED, "out.csv.partial": "x"},
    ),
    Case("predict with workers without Ray", "predict runs/mine rows.jsonl --workers 2"),
    Case("predict that begins again without an output", "predict runs/mine rows.jsonl --restart"),
    Case("predict with base on Ray", "predict runs/mine rows.jsonl --base --ray", others=TRAINED),
    Case("chat without a run", "chat runs/none"),
    Case("chat with a run that has no model", "chat runs/mine", others={"runs/mine/manifest.json": MANIFEST}),
    Case("chat with an unknown task", "chat runs/mine --task sentimnt", others=TRAINED),
    Case("chat with a temperature that is no number", "chat runs/mine --temperature hot", others=TRAINED),
    Case("examples without a run", "examples runs/none"),
    Case("comparison of one model", "compare runs/none"),
    Case("export without a run", "export runs/none"),
    Case("export of a run that is not trained", "export runs/mine", others={"runs/mine/manifest.json": MANIFEST}),
    Case("export with a dtype for an adapter", "export runs/mine --to adapter --dtype bf16"),
    Case("export with unknown rows", "export runs/mine --check-rows some"),
    Case(
        "export into a folder of the user", "export runs/mine --output .", others={"runs/mine/manifest.json": MANIFEST}
    ),
    Case("publish without an owner", "publish runs/mine reviews"),
    Case("misspelt command", "chekc job.yaml"),
    Case("former name of a command", "show runs/mine"),
    Case("compare of two models without prompts", "compare smollm2-135m-instruct smollm2-135m-instruct"),
    Case("compare with a missing metric", "compare runs/a runs/b --metric rogue"),
    Case("compare of two models with a task", "compare runs/a runs/b --task reviews"),
    Case(
        "manifest of another version",
        "report runs/mine",
        others={"runs/mine/manifest.json": '{"format_version": 9, "stages": {}}'},
    ),
    Case("manifest is a list", "report runs/mine", others={"runs/mine/manifest.json": "[]"}),
    Case("a manifest without entries", "report runs/mine", others={"runs/mine/manifest.json": MANIFEST}),
    Case("an empty name", ["run", "job.yaml", "--name", ""]),
    Case("a hidden name", "run job.yaml --name .mine"),
    Case("no disk space", RUN, fault=OSError(28, "No space left on device", "runs/mine/config.yaml.partial")),
    Case("no write permission", RUN, fault=PermissionError(13, "Permission denied", "runs/mine")),
    Case("a cache that is not writable", RUN, environment={"ALFINE_CACHE": "/proc/no/cache"}),
    Case("a cache folder that is a file", RUN, environment={"ALFINE_CACHE": "rows.jsonl"}),
    Case("a cache in an unknown home folder", RUN, environment={"ALFINE_CACHE": "~no-such-user/cache"}),
]
