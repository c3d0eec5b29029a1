"""Entry point of a training. This module does not import Ludwig.

The calls of a training, from the outside in:

1. `pipelines.stages.train.train_model`: the stage `train` of a run, with its progress bar
2. `pipelines.training.ray.train_on_ray`, if the backend is Ray: starts the workers, each of which calls `train`
3. `train`: redirects the output of Ludwig to a log file
4. `pipelines.training.ludwig_training.train_and_export`: builds what Ludwig needs, trains, exports
5. `LudwigModel.train`, Ludwig's own, which calls `FineTuneTrainer` (its hooks: `pipelines.training.trainer`)
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config.job import Job
from pipelines.registry import lazy_import
from pipelines.storage.run_folder import Run

if TYPE_CHECKING:
    from pipelines.modeling import hardware, memory
else:
    hardware, memory = (lazy_import(f"pipelines.modeling.{name}") for name in ("hardware", "memory"))  # torch

ProgressCallback = Callable[[int, int, float | None], None]
"""Called with the steps done, the total number of steps, and the loss of the last step (None before the first)."""


def train(job: Job, run: Run, starting_model_folder: Path, progress: ProgressCallback) -> None:
    """Trains a model, or resumes from the last checkpoint, and writes the run's folder `model`.

    That folder has the weights, the tokenizer, a model card and training.json. In a distributed training every process
    calls this function (see `pipelines.training.ray`) and rank 0 writes the folder.
    Raises ConfigError, RunError and MachineError.
    """
    workdir = run.path("training")
    workdir.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    with _output_to_file(workdir / (f"ludwig-{rank}.log" if rank else "ludwig.log")):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        # Ludwig: 10 s that a run without training does not need. It also writes warnings while it is imported.
        from pipelines.training.ludwig_training import train_and_export

        with memory.machine_error_on_out_of_memory("the training"):
            train_and_export(job, run, starting_model_folder, progress)
        if hardware.current_hardware().device.type != "cpu":
            memory.release_cached_memory()  # Ludwig's objects are in reference cycles


@contextlib.contextmanager
def _output_to_file(path: Path) -> Iterator[None]:
    """Appends log messages, warnings and standard output to a file, so that they do not disturb the progress bar."""
    root = logging.getLogger()
    ludwig = logging.getLogger("ludwig")
    handler = logging.FileHandler(path, encoding="utf-8")
    handlers, level, propagate = root.handlers[:], root.level, ludwig.propagate
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            yield
    finally:
        root.handlers, root.level, ludwig.propagate = handlers, level, propagate
        logging.captureWarnings(False)
        handler.close()
