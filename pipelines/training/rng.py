"""The states of torch's random number generators."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def rng_state() -> dict[str, torch.Tensor]:
    """Returns the states of the generators: `cpu`, and `cuda` (the current GPU's) if there is a GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, torch.Tensor]) -> None:
    """Sets the generators to a state that `rng_state` has returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
