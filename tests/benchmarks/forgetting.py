"""A job whose baseline run forgets, and how much of the forgetting each strategy prevents.

    python -m tests.benchmarks.forgetting FOLDER_OF_DATA_SETS [--adapter] [--rate 0.0003] STRATEGY ...

The job: sentiment_uci (400 rows, one epoch), every weight trained (or LoRA with --adapter) at a high learning rate. The
runs are in runs/forgetting-STRATEGY. Each report has the task score, the bundled retention evals, the loss on
wikitext-2 (64 pieces of 140 words, in nats per token) and the accuracy on ARC-Easy (300 rows); the last two are
retention evals on files in FOLDER.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.benchmarks.public_data import JOBS, ROOT, lines


def retention_evals(folder: Path, work_folder: Path) -> dict[str, dict[str, object]]:
    """The settings of the bundled retention evals, of wikitext-2 and of ARC-Easy. Writes the rows of the last two."""
    words = (folder / "wikitext2" / "wikitext2_test.txt").read_text(encoding="utf-8").split()
    texts = [" ".join(words[start : start + 140]) for start in range(0, 64 * 140, 140)]
    wikitext, arc = work_folder / "wikitext2.jsonl", work_folder / "arc_easy.jsonl"
    wikitext.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    rows = [
        {
            "question": str(row["query"]).removeprefix("Question: "),
            "choices": row["choices"],
            "answer": int(str(row["gold"])),
        }
        for row in lines(folder / "multiple_choice" / "arc_easy.jsonl")[:300]
    ]
    arc.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bundled = ROOT / "data" / "retention"
    return {
        "knowledge": {"kind": "multiple_choice", "data": str(bundled / "choices.jsonl")},
        "text": {"kind": "text_nll", "data": str(bundled / "passages.jsonl")},
        "answers": {"kind": "kl", "data": str(bundled / "instructions.jsonl")},
        "wikitext2": {"kind": "text_nll", "data": str(wikitext)},
        "arc_easy": {"kind": "multiple_choice", "data": str(arc)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("strategies", nargs="+", help="as in the YAML, with overrides after a colon: ewc:ewc.weight=10")
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--rate", type=float, default=0.0003)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    work_folder = ROOT / "runs" / "forgetting"
    work_folder.mkdir(parents=True, exist_ok=True)
    make, task = JOBS["sentiment_uci"]
    data = work_folder / "sentiment_uci.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make(args.folder)), encoding="utf-8")
    config = yaml.safe_load(
        (ROOT / "ludwig_configs" / ("instruction" if args.adapter else "full_finetune"))
        .with_suffix(".yaml")
        .read_text()
    )
    config["pipeline"]["tasks"] = {"sentiment": {"data": str(data), **task, "max_new_tokens": 8}}
    config["trainer"]["learning_rate"] = args.rate
    config["pipeline"]["seed"] = args.seed
    evals = retention_evals(args.folder, work_folder)
    for variant in args.strategies:
        strategy, _, overrides = variant.partition(":")
        config["pipeline"]["forgetting"] = {"strategy": strategy, "evals": evals}
        name = "-".join(["forgetting", *re.findall(r"[\w.]+", variant), f"s{args.seed}"])
        path = work_folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        command = [str(Path(sys.executable).parent / "alfine"), "run", str(path), "--name", name]
        command += [f"pipeline.forgetting.{override}" for override in overrides.split(",") if override]
        subprocess.run(command, cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
