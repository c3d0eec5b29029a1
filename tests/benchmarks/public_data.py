"""Jobs on public data for which alfine was not tuned: sentiment_uci, MBPP and SciTLDR, each with the config
ludwig_configs/instruction.yaml and its own data section.

    python -m tests.benchmarks.public_data FOLDER_OF_DATA_SETS [sentiment_uci mbpp scitldr]

FOLDER holds sentiment_uci/sentences.jsonl, mbpp/mbpp_std.jsonl and scitldr/{train,dev}.jsonl. `alfine run` runs each
job in runs/public-NAME; then a line of its table is printed.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
Row = dict[str, object]


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def shuffled(rows: list[Row], train: int, validation: int, test: int) -> Iterator[Row]:
    random.Random(0).shuffle(rows)
    splits = ["train"] * train + ["validation"] * validation + ["test"] * test
    for row, split in zip(rows, splits, strict=False):
        yield {**row, "split": split}


def sentiment_uci(folder: Path) -> Iterator[Row]:
    yield from shuffled(lines(folder / "sentiment_uci" / "sentences.jsonl"), 400, 60, 300)


def mbpp(folder: Path) -> Iterator[Row]:
    rows: list[Row] = []
    for row in lines(folder / "mbpp" / "mbpp_std.jsonl"):
        tests = [str(test) for test in row["test_list"]]  # type: ignore[attr-defined]
        code = str(row["code"]).replace("\r\n", "\n").replace("\t", "    ")
        if row["solution_passes"] and len(code) < 500:
            rows.append({"text": row["text"], "code": code, "tests": tests, "first_test": tests[0]})
    yield from shuffled(rows, 200, 30, 60)


def scitldr(folder: Path) -> Iterator[Row]:
    for row in shuffled(lines(folder / "scitldr" / "train.jsonl"), 120, 20, 0):
        yield {"text": row["source"], "summary": row["targets"][0], "split": row["split"]}  # type: ignore[index]
    for row in lines(folder / "scitldr" / "dev.jsonl")[:40]:
        yield {"text": row["source"], "summary": row["targets"][0], "split": "test"}  # type: ignore[index]


JOBS: dict[str, tuple[Callable[[Path], Iterator[Row]], dict[str, object]]] = {
    "sentiment_uci": (
        sentiment_uci,
        {
            "prompt": "Is this review positive or negative?\n{text}",
            "completion": "{label}",
            "metric": "exact_match",
            "max_new_tokens": 32,
        },
    ),
    "mbpp": (
        mbpp,
        {
            "prompt": "{text}\nIt must pass: {first_test}",
            "completion": "{code}",
            "metric": "unit_tests",
            "max_new_tokens": 128,
        },
    ),
    "scitldr": (
        scitldr,
        {
            "prompt": "Summarise in one sentence.\n{text}",
            "completion": "{summary}",
            "metric": "rouge",
            "max_new_tokens": 48,
        },
    ),
}


def main(folder: Path, names: list[str]) -> None:
    workplace = ROOT / "runs" / "public-data"
    workplace.mkdir(parents=True, exist_ok=True)
    for name in names:
        make, task = JOBS[name]
        data = workplace / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in make(folder)), encoding="utf-8")
        config = yaml.safe_load((ROOT / "ludwig_configs" / "instruction.yaml").read_text(encoding="utf-8"))
        config["pipeline"]["tasks"] = {name: {"data": str(data), **task}}
        (workplace / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        command = ["alfine", "run", str(workplace / f"{name}.yaml"), "--name", f"public-{name}"]
        subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:] or list(JOBS))
