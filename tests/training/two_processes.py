"""Trains the jobs in the folders of the arguments, in one process of a process group that torch.distributed.run starts."""

import contextlib
import sys
from pathlib import Path

import torch.distributed as dist

from pipelines.config.job import load_job
from pipelines.storage.run_folder import Run
from pipelines.training.train import train
from tests.emulated_precision import DTYPES, emulated_precision


def precision_of(case: str) -> contextlib.AbstractContextManager[None]:
    """Half precision for a case whose name ends in it, such as `lora-bf16`."""
    dtype = DTYPES.get(case.rpartition("-")[2])
    return contextlib.nullcontext() if dtype is None else emulated_precision(dtype)


def main() -> None:
    dist.init_process_group("gloo")
    for folder in map(Path, sys.argv[1:]):
        job = load_job(folder / "job.yaml")
        with precision_of(folder.name):
            train(job, Run(folder / "run"), Path(job.base_model), lambda done, total, loss: None)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
