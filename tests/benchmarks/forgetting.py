"""A job that makes the plain run forget, and what each strategy saves of it.

    python -m tests.benchmarks.forgetting FOLDER_OF_DATA_SETS [--adapter] [--rate 0.0003] STRATEGY ...

The job: sentiment_uci (400 rows, one epoch), every weight trained (or LoRA with --adapter) at a high rate. The runs lie in
runs/forgetting-STRATEGY; beside each task score and the bundled retention evals stand the loss of wikitext-2 (64 pieces of 140 words, in
nats per token) and accuracy on ARC-Easy (300 rows), both read by alfine's own retention evals from FOLDER.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.benchmarks.public_data import JOBS, ROOT, lines


def retention_evals(folder: Path, workplace: Path) -> dict[str, dict[str, object]]:
    """The bundled retention evals, wikitext-2 and ARC-Easy in their form."""
    words = (folder / "wikitext2" / "wikitext2_test.txt").read_text(encoding="utf-8").split()
    texts = [" ".join(words[start : start + 140]) for start in range(0, 64 * 140, 140)]
    wikitext, arc = workplace / "wikitext2.jsonl", workplace / "arc_easy.jsonl"
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
    parser.add_argument("strategies", nargs="+", help="as in the YAML, with knobs behind a colon: ewc:ewc.weight=10")
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--rate", type=float, default=0.0003)
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    workplace = ROOT / "runs" / "forgetting"
    workplace.mkdir(parents=True, exist_ok=True)
    make, task = JOBS["sentiment_uci"]
    data = workplace / "sentiment_uci.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in make(given.folder)), encoding="utf-8")
    config = yaml.safe_load(
        (ROOT / "ludwig_configs" / ("instruction" if given.adapter else "full_finetune"))
        .with_suffix(".yaml")
        .read_text()
    )
    config["pipeline"]["tasks"] = {"sentiment": {"data": str(data), **task, "max_new_tokens": 8}}
    config["trainer"]["learning_rate"] = given.rate
    config["pipeline"]["seed"] = given.seed
    measured = retention_evals(given.folder, workplace)
    for one in given.strategies:
        strategy, _, knobs = one.partition(":")
        config["pipeline"]["forgetting"] = {"strategy": strategy, "evals": measured}
        name = "-".join(["forgetting", *re.findall(r"[\w.]+", one), f"s{given.seed}"])
        path = workplace / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        command = [str(Path(sys.executable).parent / "alfine"), "run", str(path), "--name", name]
        command += [f"pipeline.forgetting.{knob}" for knob in knobs.split(",") if knob]
        subprocess.run(command, cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
