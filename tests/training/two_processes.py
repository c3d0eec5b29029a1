"""Trains the jobs in the folders of the arguments, in one process of a process group that torch.distributed.run starts."""

import sys
from pathlib import Path

import torch.distributed as dist

from pipelines.config.job import load_job
from pipelines.storage.run_folder import Run
from pipelines.training.train import train


def main() -> None:
    dist.init_process_group("gloo")
    for folder in map(Path, sys.argv[1:]):
        job = load_job(folder / "job.yaml")
        train(job, Run(folder / "run"), Path(job.base_model), lambda done, total, loss: None)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
