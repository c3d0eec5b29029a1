"""How many of a step's rows go through the model at once: what memory allows, which changes nothing in the step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from pipelines.modeling.token_sequences import TokenSequences, batch_by_tokens, micro_batches

ACTIVATION_MEMORY_FRACTION = 0.4
"""Of the free memory, for what a forward pass keeps; the backward pass needs about as much again."""
MAX_MICRO_BATCH_TOKENS = 16_384
"""More at once are not faster."""


class MicroBatches:
    """A step's rows in parts: of so many rows, as the YAML says, or (`rows` None) of as many tokens as memory allows.

    What is found, by measurement or because memory ran out, stands in `history["micro_batch"]`, so that a training that goes
    on cuts its steps as before and adds up the same numbers in the same order.
    """

    def __init__(self, rows: int | None, history: dict[str, Any]) -> None:
        self.history = history
        self.initial_size = {"rows": rows} if rows else None

    @property
    def size(self) -> dict[str, int] | None:
        """{"rows": n} or {"tokens": n}; None before it is measured."""
        return self.history.get("micro_batch", self.initial_size)

    def split(self, rows: TokenSequences) -> Iterator[TokenSequences]:
        """All rows, each once; those that begin alike together, since what they share is read once a part."""
        size = self.size
        assert size is not None
        rows = rows.select(sorted(range(len(rows)), key=lambda number: rows.input_ids[number].tobytes()))
        if "rows" in size:
            yield from micro_batches(rows, size["rows"])
            return
        for numbers in batch_by_tokens(rows, size["tokens"]):
            yield rows.select(numbers)

    def halve(self, rows: TokenSequences) -> bool:
        """After running out of memory; False where one row at a time was too much already."""
        (unit, number), longest = next(iter((self.size or {"rows": 1}).items())), max(map(len, rows.input_ids))
        if number <= (1 if unit == "rows" else longest):
            return False
        whole = min(number, len(rows) if unit == "rows" else rows.tokens)
        self.history["micro_batch"] = {unit: max(whole // 2, 1)}
        return True

    @contextlib.contextmanager
    def calibrate(self, rows: TokenSequences, model: torch.nn.Module) -> Iterator[TokenSequences]:
        """Hands out the longest row; what its pass keeps for the backward pass tells how many tokens fit."""
        longest = max(range(len(rows)), key=lambda number: len(rows.input_ids[number]))
        fixed = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in fixed:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield rows.select([longest])
        tokens = len(rows.input_ids[longest])
        fit = int(
            ACTIVATION_MEMORY_FRACTION * free_memory(next(model.parameters()).device) / (sum(kept.values()) / tokens)
        )
        self.history["micro_batch"] = {"tokens": max(tokens, min(fit, MAX_MICRO_BATCH_TOKENS))}


def free_memory(device: torch.device) -> int:
    """Bytes that a pass may still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil

    return int(psutil.virtual_memory().available)
