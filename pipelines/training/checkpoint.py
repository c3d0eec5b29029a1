"""One safetensors file a checkpoint: all that a training needs to go on as if nothing had been. No pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from ludwig.utils.checkpoint_utils import Checkpoint
from ludwig.utils.data_utils import NumpyEncoder
from ludwig.utils.trainer_utils import ProgressTracker
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from pipelines.errors import MachineError
from pipelines.modeling.adapters import trained_weights
from pipelines.storage.files import save_tensors

WEIGHTS, OPTIMIZER, RANDOM, STRATEGY = "weights/", "optimizer/", "random/", "strategy/"
LATEST, PREVIOUS = "latest.ckpt", "previous.ckpt"


class CorruptCheckpointError(Exception):
    """A checkpoint that is torn, or not what was written."""


class Stateful(Protocol):
    """What has a state from step to step: a strategy, or who watches the guards."""

    name: str

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class SafetensorsCheckpoint(Checkpoint):
    """Ludwig's checkpoint protocol on one file that is written aside, flushed to disk and renamed, with a checksum of its
    tensors; the one before is kept beside the latest.

    Only trainable weights are kept: a LoRA checkpoint is megabytes, not the base model. `history`, a dict that JSON can hold,
    is saved with them and put back in place, and so is what `stateful` carry from step to step, and Ludwig's own progress
    (`tracker`): in one file they cannot be of different steps.
    """

    def __init__(self, *args: Any, history: dict[str, Any], stateful: Sequence[Stateful] = ()) -> None:
        super().__init__(*args)
        self.history, self.stateful = history, stateful
        self.tracker: ProgressTracker | None = None
        self.pending: dict[str, Any] | None = None

    def save(self, save_path: str, global_step: int) -> None:
        """Raises OSError where the disk does not take it; the files of before are untouched then."""
        if not self.distributed.is_coordinator():
            return
        tensors = {WEIGHTS + name: tensor for name, tensor in self._trainable().items()}
        optimizer = self.optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for number, state in optimizer["state"].items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{OPTIMIZER}{number}/{key}"] = value
                else:
                    scalars.setdefault(str(number), {})[key] = value
        positions: dict[str, Any] = {}
        for component in self.stateful:
            for key, value in component.state_dict().items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{STRATEGY}{component.name}/{key}"] = value
                else:
                    positions.setdefault(component.name, {})[key] = value
        tensors[RANDOM + "cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors[RANDOM + "cuda"] = torch.cuda.get_rng_state()
        state = {
            "global_step": global_step,
            "param_groups": optimizer["param_groups"],
            "optimizer_scalars": scalars,
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "strategies": positions,
            "tracker": self.tracker and _plain(self.tracker),
        }
        whole = {name: tensor.detach().clone().contiguous().cpu() for name, tensor in tensors.items()}
        path = Path(save_path)
        save_tensors(whole, {"state": json.dumps(state), "sha256": _checksum(whole)}, path.with_suffix(".partial"))
        if path.name == LATEST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        path.with_suffix(".partial").replace(path)

    def resume(self, folder: Path) -> ProgressTracker | None:
        """Goes on from the latest checkpoint that can be read; None where there is none. One that cannot is named in
        `history["notes"]`. Raises CorruptCheckpointError where there are some, and none can be read."""
        notes: list[str] = []
        for path in (folder / LATEST, folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                self.load(str(path))
            except CorruptCheckpointError as error:
                notes.append(f"{path} cannot be read ({error})")
                continue
            if notes:
                self.history.setdefault("notes", []).append(
                    f"{notes[0]}; training went on from step {self.global_step}"
                )
            assert self.tracker is not None
            return self.tracker
        if notes:
            raise CorruptCheckpointError("; ".join(notes))
        return None

    def load(self, save_path: str, device: torch.device | None = None) -> bool:
        """Weights and optimiser are put back at once; schedule and random state wait in `pending`, since
        Ludwig builds a new schedule and seeds anew after it has loaded a checkpoint. Raises CorruptCheckpointError."""
        try:
            with safe_open(save_path, framework="pt") as file:
                metadata = file.metadata()
            state, tensors = json.loads(metadata["state"]), load_file(save_path)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptCheckpointError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
        if _checksum(tensors) != metadata.get("sha256"):
            raise CorruptCheckpointError("its checksum is not that of what was written")
        weights, trained = _part(tensors, WEIGHTS), self._trainable()
        if different := sorted(set(weights) ^ set(trained)):
            raise CorruptCheckpointError(f"it holds other weights than are trained now, such as {different[0]}")
        self.history.update(state["history"])
        self.tracker = state["tracker"] and ProgressTracker.load(state["tracker"])
        self.global_step = state["global_step"]
        self.model.load_state_dict(weights, strict=False)  # the frozen ones are not in the file
        optimizer_state: dict[int, dict[str, Any]] = {
            int(number): dict(scalars) for number, scalars in state["optimizer_scalars"].items()
        }
        for name, tensor in _part(tensors, OPTIMIZER).items():
            number, _, key = name.partition("/")
            optimizer_state.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({"state": optimizer_state, "param_groups": state["param_groups"]})
        for component in self.stateful:
            kept = {**_part(tensors, f"{STRATEGY}{component.name}/"), **state["strategies"].get(component.name, {})}
            if kept:
                component.load_state_dict(kept)
        self.pending = {
            "scheduler": state["scheduler"],
            "random": _part(tensors, RANDOM),
        }
        return True

    def get_state_for_inference(self, save_path: str, device: torch.device | None = None) -> Mapping[str, Any]:
        return _part(load_file(save_path, device=str(device or "cpu")), WEIGHTS)

    def _trainable(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.model.named_parameters() if tensor.requires_grad}


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check_disk(model: torch.nn.Module, folder: str | Path) -> None:
    """Raises MachineError where the checkpoints to come would not fit: latest, previous, best and the one being written, each
    with the trained weights and two moments."""
    trained = sum(weight.numel() * weight.element_size() for weight in trained_weights(model))
    needed, free = 4 * 3 * trained, shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"{folder}: training needs about {needed / 1e9:.1f} GB for its checkpoints, {free / 1e9:.1f} GB are free; make room, "
            f"then the same command goes on from here"
        )


def _plain(tracker: ProgressTracker) -> dict[str, Any]:
    """Ludwig's progress as JSON holds it, without what it sets anew at each start."""
    ephemeral = {"steps_per_epoch", "total_steps", "training_start_time"}
    kept = {key: value for key, value in vars(tracker).items() if key not in ephemeral}
    return dict(json.loads(json.dumps(kept, cls=NumpyEncoder)))


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(memoryview(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()))
    return found.hexdigest()
