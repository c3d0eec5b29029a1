"""Checkpoints: one safetensors file with all that a bitwise identical resume needs. Nothing is pickled."""

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
from ludwig.utils.trainer_utils import ProgressTracker, initialize_trainer_metric_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from pipelines.errors import MachineError
from pipelines.modeling.adapters import trainable_parameters
from pipelines.modeling.hardware import rng_state
from pipelines.modeling.memory import release_cached_memory
from pipelines.storage.files import atomic_write, save_tensors
from pipelines.training.optimizers import load_optimizer_state

WEIGHTS, OPTIMIZER, RNG, COMPONENT = "weights/", "optimizer/", "rng/", "component/"
"""Prefixes of the tensors' names in a checkpoint."""
LATEST, PREVIOUS, BEST = "latest.ckpt", "previous.ckpt", "best.ckpt"


class CorruptCheckpointError(Exception):
    """A checkpoint that is truncated, altered, or of other trained weights. The message is the reason."""


class Stateful(Protocol):
    """A component whose state is part of a checkpoint: a strategy or a trainer callback.

    Each value of the state is a tensor or can be represented in JSON.
    """

    name: str

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class SafetensorsCheckpoint(Checkpoint):
    """Ludwig's checkpoint interface on one file, which is written atomically and has a checksum of its tensors.

    The file has the trained weights (of a LoRA training megabytes, not the base model), the state of the optimizer, the
    schedule, the random number generators and of each component in `stateful`, Ludwig's progress (`tracker`), and
    `history`, a dict that can be represented in JSON and is updated in place on a load. One file cannot mix steps.
    The checkpoint before the latest is kept. That of the best weights has nothing but these, which is all that is read
    of it: the moments of Adam are twice as large.
    """

    def __init__(self, *args: Any, history: dict[str, Any], stateful: Sequence[Stateful] = ()) -> None:
        super().__init__(*args)
        self.history, self.stateful = history, stateful
        self.tracker: ProgressTracker | None = None
        self.deferred_state: dict[str, Any] | None = None

    def save(self, save_path: str, global_step: int) -> None:
        """Writes the checkpoint on rank 0. Raises OSError if that fails; existing checkpoints are unchanged then."""
        if not self.distributed.is_coordinator():
            return
        path = Path(save_path)
        tensors = {WEIGHTS + name: tensor for name, tensor in self._trained().items()}
        if path.name == BEST:
            with atomic_write(path) as staging_path:
                save_tensors(_on_cpu(tensors), {"global_step": str(global_step)}, staging_path)
            return
        optimizer = self.optimizer.state_dict()
        optimizer_scalars = _separate_tensors(optimizer["state"], OPTIMIZER, tensors)
        component_state: dict[str, dict[str, Any]] = {}
        for component in self.stateful:
            for key, value in component.state_dict().items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{COMPONENT}{component.name}/{key}"] = value
                else:
                    component_state.setdefault(component.name, {})[key] = value
        tensors |= {RNG + name: state for name, state in rng_state().items()}
        state = {
            "global_step": global_step,
            "param_groups": optimizer["param_groups"],
            "optimizer_scalars": optimizer_scalars,
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "components": component_state,
            "tracker": self.tracker and _tracker_to_json(self.tracker),
        }
        cpu_tensors = _on_cpu(tensors)
        with atomic_write(path) as staging_path:
            save_tensors(cpu_tensors, {"state": json.dumps(state), "sha256": _checksum(cpu_tensors)}, staging_path)
            if path.name == LATEST and path.exists():
                path.replace(path.with_name(PREVIOUS))

    def resume(self, folder: Path) -> ProgressTracker | None:
        """Loads the latest valid checkpoint in `folder` and returns its progress, None if there is no checkpoint.

        `history["notes"]` names a corrupt checkpoint. Raises CorruptCheckpointError if no checkpoint is valid.
        """
        errors: list[str] = []
        for path in (folder / LATEST, folder / PREVIOUS):
            if not path.exists():
                continue
            try:
                self.load(str(path))
            except CorruptCheckpointError as error:
                errors.append(f"checkpoint {path} is corrupt ({error})")
                continue
            if errors:
                note = f"{errors[0]}; training resumed from step {self.global_step}"
                self.history.setdefault("notes", []).append(note)
            assert self.tracker is not None
            return self.tracker
        if errors:
            raise CorruptCheckpointError("; ".join(errors))
        return None

    def load(self, save_path: str, device: torch.device | None = None) -> bool:
        """Restores the weights, the optimizer, the history and the components. Raises CorruptCheckpointError.

        The states of the schedule and of the random number generators are left in `deferred_state`: after the load,
        Ludwig builds a new schedule and sets the seeds.
        """
        state, tensors = _read(save_path)
        weights = _with_prefix(tensors, WEIGHTS)
        if mismatched := sorted(set(weights) ^ set(self._trained())):
            raise CorruptCheckpointError(
                f"its weights are not the trained weights of this job, such as {mismatched[0]}"
            )
        self.history.update(state["history"])
        self.tracker = state["tracker"] and ProgressTracker.load(state["tracker"])
        self.global_step = state["global_step"]
        self.model.load_state_dict(weights, strict=False)  # frozen weights are not in the file
        by_index = _insert_tensors(state["optimizer_scalars"], _with_prefix(tensors, OPTIMIZER))
        optimizer_state = {int(index): values for index, values in by_index.items()}
        load_optimizer_state(self.optimizer, {"state": optimizer_state, "param_groups": state["param_groups"]})
        for component in self.stateful:
            component_tensors = _with_prefix(tensors, f"{COMPONENT}{component.name}/")
            if component_state := {**component_tensors, **state["components"].get(component.name, {})}:
                component.load_state_dict(component_state)
        self.deferred_state = {"scheduler": state["scheduler"], "rng": _with_prefix(tensors, RNG)}
        return True

    def get_state_for_inference(self, save_path: str, device: torch.device | None = None) -> Mapping[str, Any]:
        """Restores the weights of a checkpoint and returns them, as the model's own parameters.

        Ludwig calls this at the end of the training. The optimizer's state is not read, and the one in memory, which is
        no longer needed, is dropped: on the device of the model nothing is allocated.
        """
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        release_cached_memory()
        trained = self._trained()
        with safe_open(save_path, framework="pt") as file, torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(file.get_tensor(WEIGHTS + name))
        return trained

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


def _read(path: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Returns the state and the tensors of a checkpoint file. Raises CorruptCheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        state, tensors = json.loads(metadata["state"]), load_file(path)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if _checksum(tensors) != metadata.get("sha256"):
        raise CorruptCheckpointError("checksum mismatch")
    return state, tensors


def _on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors, contiguous and in main memory, no two with the same memory. Nothing is allocated on a GPU.

    A tensor that is there already is not copied: an offloaded optimizer may have most of the main memory.
    """
    on_cpu: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        storage = value.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != value.nbytes:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        on_cpu[name] = value
    return on_cpu


def _with_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Returns the tensors whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _separate_tensors(state: Mapping[Any, Any], prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Adds the tensors of a nested dict to `tensors`, named `prefix` + key/key, and returns the rest of the dict.

    The keys become text, as in JSON. Raises TypeError for a key that has a slash, or a tensor within a list.
    """
    rest: dict[str, Any] = {}
    for key, value in state.items():
        if "/" in str(key):
            raise TypeError(f"the key {key!r} of a state has a slash")
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            rest[str(key)] = _separate_tensors(value, f"{prefix}{key}/", tensors)
        elif isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value):
            raise TypeError(f"the state {prefix}{key} has tensors in a {type(value).__name__}")
        else:
            rest[str(key)] = value
    return rest


def _insert_tensors(rest: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Inserts the tensors that `_separate_tensors` has taken out, and returns the dict."""
    for name, tensor in tensors.items():
        *parents, key = name.split("/")
        values = rest
        for parent in parents:
            values = values.setdefault(parent, {})
        values[key] = tensor
    return rest


def check_disk(model: torch.nn.Module, folder: str | Path) -> None:
    """Raises MachineError if the checkpoints of a training of `model` do not fit on the disk of `folder`.

    There are at most the latest, the previous and the one being written, each with the trained weights and two
    optimizer moments, and the best weights.
    """
    # fp32, in which the trained weights are, or of which there is a copy.
    trained_bytes = sum(4 * weight.numel() for weight in trainable_parameters(model))
    needed, free = (3 * 3 + 1) * trained_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"{folder}: training needs about {needed / 1e9:.1f} GB for its checkpoints, {free / 1e9:.1f} GB are free; "
            "free some space, then run the same command again to resume"
        )


def _tracker_to_json(tracker: ProgressTracker) -> dict[str, Any]:
    """Returns Ludwig's progress without the values that it sets at each start."""
    ephemeral = {"steps_per_epoch", "total_steps", "training_start_time"}
    persistent = {key: value for key, value in vars(tracker).items() if key not in ephemeral}
    return dict(json.loads(json.dumps(persistent, cls=NumpyEncoder)))


def restore_metric_logs(tracker: ProgressTracker, output_features: Any) -> None:
    """Completes the metric logs of a loaded tracker.

    JSON does not keep the default values of these dicts, which are all that they have before an evaluation.
    """
    for split in ("train_metrics", "validation_metrics", "test_metrics"):
        log = initialize_trainer_metric_dict(output_features)
        for name, metrics in getattr(tracker, split).items():
            log[name].update(metrics)
        setattr(tracker, split, log)


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns the sha256 of the tensors' names and bytes."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        sha256.update(name.encode())
        sha256.update(memoryview(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()))
    return sha256.hexdigest()
