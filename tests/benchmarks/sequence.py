"""Two jobs in sequence: backward transfer of the second to the first, with and without strategies against forgetting.

    python -m tests.benchmarks.sequence [--rate 0.001] [--seed 42] STRATEGY ...

The first job trains on the quickstart's reviews. The second continues from it and trains on the summaries and the code.
The runs are in runs/sequence-*. The report of each second run has the backward transfer with its interval. The first
job is trained once.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("strategies", nargs="+", help="as in the YAML: none replay+distill+ewc")
    parser.add_argument("--rate", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    config = yaml.safe_load((ROOT / "ludwig_configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    config["trainer"]["learning_rate"] = args.rate
    pipeline = config["pipeline"]
    pipeline["seed"], tasks = args.seed, pipeline["tasks"]
    pipeline["report"].pop("gates", None)
    jobs = {
        f"sequence-first-s{args.seed}": {
            "tasks": {"sentiment": tasks["sentiment"]},
            "forgetting": {"strategy": "si", "si": {"weight": 0}},
        }
    }
    for strategy in args.strategies:
        jobs["-".join(["sequence", *re.findall(r"\w+", strategy), f"s{args.seed}"])] = {
            "tasks": {name: tasks[name] for name in ("summaries", "code")},
            "forgetting": {"strategy": strategy},
            "continue_from": f"runs/sequence-first-s{args.seed}",
        }
    for name, changed in jobs.items():
        path = ROOT / "runs" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            yaml.safe_dump({**config, "pipeline": {**pipeline, **changed}}, sort_keys=False), encoding="utf-8"
        )
        command = [str(Path(sys.executable).parent / "alfine"), "run", str(path), "--name", name]
        if subprocess.run(command, cwd=ROOT, check=False).returncode not in (0, 3):
            sys.exit(1)
        report = json.loads((ROOT / "runs" / name / "report.json").read_text(encoding="utf-8"))
        print(name, json.dumps(report["backward_transfer"]))


if __name__ == "__main__":
    main()
