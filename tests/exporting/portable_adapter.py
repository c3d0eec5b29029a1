"""An exported adapter on another machine: only its folder and its base are there, and alfine is not imported.

    python -m tests.exporting.portable_adapter runs/quickstart [--rows 32|all]

The run is copied, exported and deleted, so that no path into it is valid. `plain_peft.py` then answers the test prompts,
with the base from a folder, and with the base by its id from a cache of the Hub, and its answers are compared with those
that the run has stored. Prints the number of equal answers by task, and exits with 3 if one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.exporting.export import ExportOptions, export
from pipelines.exporting.source import EvaluatedPrompt, open_source
from pipelines.modeling.model_folder import read_json

PROGRAM = Path(__file__).with_name("plain_peft.py")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def equal_answers(run: Path, folder: Path, rows: int | None) -> dict[str, Counter[tuple[str, bool]]]:
    """For the base from a folder and from the Hub's cache: the number of answers by task and whether they are the run's.

    folder: an empty folder for the adapter, its base and the answers.
    """
    copy = folder / "copied-run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("export", "training"))
    source = open_source(copy)
    prompts = source.prompts(rows)
    adapter, base = folder / "elsewhere" / "adapter", folder / "elsewhere" / "base"
    export(copy, ExportOptions("adapter", rows_per_task=0), adapter, ConsoleReporter())
    shutil.copytree(source.starting_model, base)
    shutil.rmtree(copy)
    home = folder / "hub"
    config = read_json(adapter / "adapter_config.json")
    _fill_hub_cache(home, str(config["base_model_name_or_path"]), config.get("revision"), base)

    def count(arguments: list[str]) -> Counter[tuple[str, bool]]:
        answers = _answers(prompts, adapter, folder, home, arguments)
        pairs = zip(prompts, answers, strict=True)
        return Counter((prompt.task, answer == prompt.answer.completion) for prompt, answer in pairs)

    with_folder = count([str(base)])
    shutil.rmtree(base)
    return {"base in a folder": with_folder, "base by its id on the Hub": count([])}


def _fill_hub_cache(home: Path, name: str, revision: str | None, base: Path) -> None:
    """A cache of the Hub that has `base` as the model `name`, as a download leaves it."""
    commit = revision or COMMIT
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(base, repository / "snapshots" / commit)


def _answers(
    prompts: list[EvaluatedPrompt], adapter: Path, folder: Path, home: Path, arguments: list[str]
) -> list[str]:
    asked = [
        {"messages": list(prompt.messages), "variables": dict(prompt.variables), "limit": prompt.limit}
        for prompt in prompts
    ]
    file, output = folder / "prompts.jsonl", folder / "answers.json"
    file.write_text("".join(json.dumps(one) + "\n" for one in asked), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    command = [sys.executable, "-P", str(PROGRAM), str(adapter), str(file), str(output), *arguments]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    answers: list[str] = json.loads(output.read_text(encoding="utf-8"))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", default="32", help="test rows per task, or all")
    arguments = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        rows = None if arguments.rows == "all" else int(arguments.rows)
        counts = equal_answers(arguments.run, Path(folder), rows)
    for name, by_task in counts.items():
        tasks = {task: by_task[task, True] + by_task[task, False] for task, _ in by_task}
        parts = [f"{task} {by_task[task, True]} of {number}" for task, number in tasks.items()]
        print(f"{name}: equal answers: {', '.join(parts)}")
    sys.exit(
        3 if any(number for by_task in counts.values() for (_, equal), number in by_task.items() if not equal) else 0
    )


if __name__ == "__main__":
    main()
