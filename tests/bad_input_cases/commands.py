"""Commands and their options, and faults of the machine."""

from __future__ import annotations

from tests.bad_input_cases.case import (
    MANIFEST,
    RUN,
    Case,
)

CASES = [
    Case("predict without a run", "predict runs/none rows.jsonl"),
    Case("serve without a run", "serve runs/none"),
    Case("serve of a run without a model", "serve runs/mine", others={"runs/mine/manifest.json": MANIFEST}),
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
