"""The size of the micro-batches: memory limits it, and it does not change the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipelines.errors import MachineError
from pipelines.modeling.hardware import memory_statistics
from pipelines.modeling.memory import (
    ADVICE,
    OutOfMemory,
    attempt,
    free_memory,
    longest_sequence,
    out_of_memory_error,
)
from pipelines.modeling.token_sequences import TokenSequences, batch_by_tokens, micro_batches
from pipelines.training.activation_memory import PassMemory, measure_pass, optimizer_state_bytes

SAVED_MEMORY_FRACTION = 0.4
"""The part of the free memory for what a forward pass saves. The backward pass needs about as much again."""
PEAK_MEMORY_FRACTION = 0.8
"""The part of the free memory for a pass whose peak was measured. The rest is for fragmentation."""
OPTIMIZER_ADVICE = "an adapter, trainer.optimizer.type: paged_adamw_8bit, or a smaller base_model"
"""What needs less memory, for the error when the optimizer's state does not fit."""
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

    def calibrate(
        self,
        sequences: TokenSequences,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        backward: Callable[[TokenSequences], object],
    ) -> None:
        """Measures how many tokens fit into memory. `backward` is called once, with the longest sequence.

        It runs a forward and a backward pass, and leaves the gradients of the weights. Raises MachineError if that
        sequence alone does not fit.
        """
        longest = max(range(len(sequences)), key=lambda index: len(sequences.input_ids[index]))
        row = sequences.select([longest])
        measured = attempt(lambda: measure_pass(model, lambda: backward(row)))
        if isinstance(measured, OutOfMemory):
            raise training_memory_error(measured, row, lockstep=False)
        device = next(model.parameters()).device
        free, fraction = free_memory(device), SAVED_MEMORY_FRACTION
        if memory_statistics(device) is not None:
            fraction = PEAK_MEMORY_FRACTION
            if not hasattr(optimizer, "masters"):  # those of an `OffloadedOptimizer` are in main memory
                free -= optimizer_state_bytes(optimizer)  # after the first step, a part of what is free now
        self.history["micro_batch"] = {"tokens": tokens_that_fit(measured, row.num_tokens, free, fraction)}


def tokens_that_fit(measured: PassMemory, num_tokens: int, free: int, fraction: float) -> int:
    """Returns the tokens of a micro-batch, given the memory of a pass over `num_tokens` and the free memory in bytes.

    At least `num_tokens`, which have fitted.
    """
    max_tokens = int(max(fraction * (free - measured.constant), 0) / (max(measured.activations, 1) / num_tokens))
    return max(num_tokens, min(max_tokens, MAX_MICRO_BATCH_TOKENS))


def training_memory_error(failure: OutOfMemory, rows: TokenSequences | None, lockstep: bool) -> MachineError:
    """Returns the error for a step that does not fit into memory with the smallest micro-batches.

    Processes in lockstep cannot reduce their micro-batches independently.
    """
    advice = f"trainer.enable_gradient_checkpointing: true, {ADVICE}"
    num_tokens = None if rows is None else longest_sequence(rows)
    if lockstep:
        return out_of_memory_error(
            "a training step", failure, num_tokens=num_tokens, advice=f"a smaller trainer.batch_size, {advice}"
        )
    work = "a training step" if rows is not None else "a training step, on the rows of pipeline.forgetting,"
    return out_of_memory_error(work, failure, num_tokens=num_tokens, advice=advice)
