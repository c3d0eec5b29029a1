"""One safetensors file a checkpoint: trained weights, optimiser, schedule, random state. No pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ludwig.utils.checkpoint_utils import Checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipelines.engine.strategy import Strategy

WEIGHTS, OPTIMIZER, RANDOM, STRATEGY = "weights/", "optimizer/", "random/", "strategy/"


class SafetensorsCheckpoint(Checkpoint):
    """Ludwig's checkpoint protocol on one file that is written aside and renamed.

    Only trainable weights are kept: a LoRA checkpoint is megabytes, not the base model. `history`, a dict that
    JSON can hold, is saved with them and put back in place, and so is what `strategies` carry from step to step.
    """

    def __init__(self, *args: Any, history: dict[str, Any], strategies: Sequence[Strategy] = ()) -> None:
        super().__init__(*args)
        self.history, self.strategies = history, strategies
        self.pending: dict[str, Any] | None = None

    def save(self, save_path: str, global_step: int) -> None:
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
        for strategy in self.strategies:
            for key, value in strategy.state().items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{STRATEGY}{strategy.name}/{key}"] = value
                else:
                    positions.setdefault(strategy.name, {})[key] = value
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
        }
        aside = Path(save_path).with_suffix(".partial")
        save_file(
            {name: tensor.detach().clone().contiguous().cpu() for name, tensor in tensors.items()},
            aside,
            metadata={"state": json.dumps(state)},
        )
        os.replace(aside, save_path)

    def load(self, save_path: str, device: torch.device | None = None) -> bool:
        """Weights and optimiser are put back at once; schedule and random state wait in `pending`, since
        Ludwig builds a new schedule and seeds anew after it has loaded a checkpoint."""
        with safe_open(save_path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
        tensors = load_file(save_path)
        self.history.update(state["history"])
        self.global_step = state["global_step"]
        self.model.load_state_dict(_part(tensors, WEIGHTS), strict=False)
        optimizer_state: dict[int, dict[str, Any]] = {
            int(number): dict(scalars) for number, scalars in state["optimizer_scalars"].items()
        }
        for name, tensor in _part(tensors, OPTIMIZER).items():
            number, _, key = name.partition("/")
            optimizer_state.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({"state": optimizer_state, "param_groups": state["param_groups"]})
        for strategy in self.strategies:
            kept = {**_part(tensors, f"{STRATEGY}{strategy.name}/"), **state["strategies"].get(strategy.name, {})}
            if kept:
                strategy.restore(kept)
        self.pending = {
            "scheduler": state["scheduler"],
            "learning_rates": [group["lr"] for group in state["param_groups"]],
            "random": _part(tensors, RANDOM),
        }
        return True

    def get_state_for_inference(self, save_path: str, device: torch.device | None = None) -> Mapping[str, Any]:
        return _part(load_file(save_path, device=str(device or "cpu")), WEIGHTS)

    def _trainable(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.model.named_parameters() if tensor.requires_grad}


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
