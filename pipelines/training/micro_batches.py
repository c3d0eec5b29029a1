"""The size of the micro-batches: memory limits it, and it does not change the step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from pipelines.errors import MachineError
from pipelines.modeling.token_sequences import TokenSequences, batch_by_tokens, micro_batches

ACTIVATION_MEMORY_FRACTION = 0.4
"""The part of the free memory for the activations of a forward pass. The backward pass needs about as much again."""
MAX_MICRO_BATCH_TOKENS = 16_384
"""Larger micro-batches are not faster."""


class MicroBatches:
    """Splits the rows of a step into micro-batches of `rows` rows, or (None) of as many tokens as memory allows.

    A size that was measured, or reduced after memory ran out, is in `history["micro_batch"]`: a resumed training splits
    its steps as before and sums the same values in the same order.
    """

    def __init__(self, rows: int | None, history: dict[str, Any]) -> None:
        self.history = history
        self.initial_size = {"rows": rows} if rows else None

    @property
    def size(self) -> dict[str, int] | None:
        """The size, as {"rows": n} or {"tokens": n}; None before it is measured."""
        return self.history.get("micro_batch", self.initial_size)

    def split(self, sequences: TokenSequences) -> Iterator[TokenSequences]:
        """Yields the micro-batches. Sequences with a shared prefix are neighbors: a micro-batch computes it once."""
        size = self.size
        assert size is not None
        order = sorted(range(len(sequences)), key=lambda index: sequences.input_ids[index].tobytes())
        sequences = sequences.select(order)
        if "rows" in size:
            yield from micro_batches(sequences, size["rows"])
            return
        for indices in batch_by_tokens(sequences, size["tokens"]):
            yield sequences.select(indices)

    def halve(self, sequences: TokenSequences) -> bool:
        """Halves the size after memory has run out. Returns False if a micro-batch has one row already."""
        ((unit, size),) = (self.size or {"rows": 1}).items()
        smallest = 1 if unit == "rows" else max(map(len, sequences.input_ids))
        if size <= smallest:
            return False
        used = min(size, len(sequences) if unit == "rows" else sequences.num_tokens)
        self.history["micro_batch"] = {unit: max(used // 2, 1)}
        return True

    @contextlib.contextmanager
    def calibrate(self, sequences: TokenSequences, model: torch.nn.Module) -> Iterator[TokenSequences]:
        """Yields the longest sequence, on which the block runs a forward and a backward pass.

        The memory of its activations determines how many tokens fit.
        """
        longest = max(range(len(sequences)), key=lambda index: len(sequences.input_ids[index]))
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        activation_bytes: dict[int, int] = {}

        def count(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                activation_bytes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            yield sequences.select([longest])
        tokens = len(sequences.input_ids[longest])
        budget = ACTIVATION_MEMORY_FRACTION * free_memory(next(model.parameters()).device)
        max_tokens = int(budget / (sum(activation_bytes.values()) / tokens))
        self.history["micro_batch"] = {"tokens": max(tokens, min(max_tokens, MAX_MICRO_BATCH_TOKENS))}


def free_memory(device: torch.device) -> int:
    """Returns the bytes that a forward pass may still allocate."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available)


def out_of_memory_error(max_length: int, *, lockstep: bool) -> MachineError:
    """Returns the error for a step that does not fit into memory with the smallest micro-batches.

    Processes in lockstep cannot reduce their micro-batches independently. `max_length` is in tokens.
    """
    advice = "shorter rows, a smaller base_model, an adapter, or quantization"
    if lockstep:
        return MachineError(
            f"out of memory with rows of up to {max_length} tokens; use a smaller trainer.batch_size, {advice}"
        )
    return MachineError(f"out of memory at batch size 1 ({max_length} tokens); use {advice}")
