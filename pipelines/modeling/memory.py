"""Out of memory: recognized on every device, then the same work in smaller parts, then an error of one line.

`attempt` runs a computation once. `BatchSplitter` halves the batches of a pass whose results do not depend on how rows
are batched. `retry_smaller` runs a whole computation again, for one that accumulates gradients or sums. Without these,
`machine_error_on_out_of_memory` turns the exception into an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from pipelines.errors import MachineError
from pipelines.modeling.hardware import current_hardware, empty_cache, memory_statistics
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.storage.environment import free_main_memory

ADVICE = "shorter rows, a smaller base_model, an adapter, or quantization"
"""What needs less memory, for the error when one row does not fit."""

_MESSAGES = re.compile(
    r"out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|can't allocate memory|not enough memory",
    re.IGNORECASE,
)
"""Messages of RuntimeErrors: of CUDA libraries with memory of their own, of MPS, and of torch's allocator for CPUs."""
_ALLOCATION = re.compile(r"tried to allocate ([\d.]+) ?(bytes|KiB|MiB|GiB|KB|MB|GB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 2**10, "mb": 2**20, "gb": 2**30}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice, on a GPU or in main memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _MESSAGES.search(str(error)) is not None


@dataclass(frozen=True)
class OutOfMemory:
    """A computation for which memory did not suffice. `allocation` is the size in bytes of the one that failed."""

    allocation: int | None = None

    @classmethod
    def from_error(cls, error: BaseException) -> OutOfMemory:
        """Reads the size of the allocation from the message, if it is there."""
        match = _ALLOCATION.search(str(error))
        return cls(int(float(match[1]) * _UNITS[match[2].lower()]) if match else None)


def attempt[T](compute: Callable[[], T]) -> T | OutOfMemory:
    """Runs `compute`. If memory does not suffice, everything that it had allocated is released."""
    try:
        return compute()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failure = OutOfMemory.from_error(error)
    # After the block: the traceback references activations.
    release_cached_memory()
    return failure


def release_cached_memory() -> None:
    """Frees objects in reference cycles and returns unused memory of the GPU to its driver."""
    gc.collect()
    empty_cache(current_hardware().device)


def return_free_heap() -> None:
    """Returns unused memory of the C heap to the system, where the allocator is glibc's; elsewhere it does nothing.

    glibc keeps the memory of freed tensors between others that stay. If large tensors come and go between small ones,
    such as weights that are dequantized for each product, a process grows by gigabytes that it does not use.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other systems, other allocators
        ctypes.CDLL(None).malloc_trim(0)


# --- the same work in smaller parts --------------------------------------------------------------------


class BatchSplitter[Batch: Sequence[Any] | TokenSequences]:
    """Computes on batches, and on halves of those for which memory does not suffice.

    Use one object for a pass over the rows: after a failure the following batches are as small as the halves.
    """

    def __init__(
        self, work: str, size: Callable[[Batch], int], *, can_split: bool = True, advice: str = ADVICE
    ) -> None:
        """
        Args:
            work: What is computed, for the error, such as "the validation loss".
            size: The number of tokens of a batch, which its memory is about proportional to.
            can_split: False if the processes of a training must have the same batches.
        """
        self.work, self.size, self.can_split, self.advice = work, size, can_split, advice
        self.max_tokens: int | None = None

    def map[Result](self, compute: Callable[[Batch], Result], batch: Batch) -> Iterator[tuple[Batch, Result]]:
        """Yields the parts of `batch` in order, each with `compute(part)`; one part if there is enough memory.

        `compute` must have no effect if it raises. Raises MachineError if one row does not fit.
        """
        parts = self._split(batch)
        while parts:
            part = parts.pop(0)
            result = attempt(lambda part=part: compute(part))  # type: ignore[misc]
            if not isinstance(result, OutOfMemory):
                yield part, result
                continue
            if len(part) == 1 or not self.can_split:
                raise out_of_memory_error(self.work, result, num_rows=len(part), num_tokens=self.size(part))
            self.max_tokens = max(1, self.size(part) // 2)
            parts = [*self._split(part), *parts]

    def _split(self, batch: Batch) -> list[Batch]:
        if self.max_tokens is None or len(batch) == 1 or self.size(batch) <= self.max_tokens:
            return [batch]
        middle = (len(batch) + 1) // 2
        return [*self._split(batch[:middle]), *self._split(batch[middle:])]  # type: ignore[arg-type]


def split_tokens(work: str, *, can_split: bool = True) -> BatchSplitter[TokenSequences]:
    """A `BatchSplitter` for forward passes over token sequences."""
    return BatchSplitter(work, lambda sequences: sequences.num_tokens, can_split=can_split)


def retry_smaller[T](
    compute: Callable[[], T], shrink: Callable[[], bool], error: Callable[[OutOfMemory], MachineError]
) -> T:
    """Returns `compute()`, which starts over after each success of `shrink`.

    `shrink` makes the parts smaller and discards what the failed attempt has accumulated; False if it cannot.
    Raises `error(…)` then.
    """
    while isinstance(result := attempt(compute), OutOfMemory):
        if not shrink():
            raise error(result)
    return result


def halve_until_it_fits[T](compute: Callable[[int], T], num_rows: int, sequences: TokenSequences, work: str) -> T:
    """Returns `compute(rows)`, the computation in batches of `num_rows` rows, or of half as many until memory suffices.

    `compute` starts from the beginning each time. Raises MachineError if one row does not fit.
    """
    while isinstance(result := attempt(lambda rows=num_rows: compute(rows)), OutOfMemory):  # type: ignore[misc]
        if num_rows == 1:
            raise out_of_memory_error(work, result, num_tokens=longest_sequence(sequences))
        num_rows = min(num_rows, len(sequences)) // 2 or 1
    return result


def longest_sequence(sequences: TokenSequences) -> int:
    """The number of tokens of the longest sequence."""
    return max(map(len, sequences.input_ids), default=0)


# --- numbers and errors --------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int:
    """The bytes that can still be allocated on `device`, those that torch holds without using them included."""
    if (statistics := memory_statistics(device)) is not None:
        free, _ = statistics.mem_get_info(device)
        return int(free + statistics.memory_reserved(device) - statistics.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return free_main_memory()


def total_memory(device: torch.device) -> int:
    """The bytes of the memory of `device`."""
    if (statistics := memory_statistics(device)) is not None:
        return int(statistics.mem_get_info(device)[1])
    return int(torch.mps.recommended_max_memory() if device.type == "mps" else psutil.virtual_memory().total)


def gigabytes(num_bytes: float) -> str:
    """A size in GB, such as `1.4 GB`."""
    return f"{num_bytes / 1e9:.1f} GB"


def out_of_memory_error(
    work: str, failure: OutOfMemory, *, num_rows: int = 1, num_tokens: int | None = None, advice: str = ADVICE
) -> MachineError:
    """The error for `work` that does not fit into memory in the smallest parts, of `num_rows` rows in `num_tokens`."""
    rows = (
        "" if num_tokens is None else f" with {'1 row' if num_rows == 1 else f'{num_rows} rows'} of {num_tokens} tokens"
    )
    device = current_hardware().device
    free, total = free_memory(device), total_memory(device)
    place = "main memory" if device.type == "cpu" else "GPU memory"
    state = f"{gigabytes(free)} of {gigabytes(total)} of {place} are free without it"
    if failure.allocation is not None:
        state = f"an allocation of {gigabytes(failure.allocation)} failed, {state}"
    return MachineError(f"out of memory during {work}{rows} ({state}); use {advice}")


@contextlib.contextmanager
def machine_error_on_out_of_memory(work: str, advice: str = ADVICE) -> Iterator[None]:
    """Raises MachineError if memory does not suffice for the block, which cannot be split."""
    try:
        yield
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failure = OutOfMemory.from_error(error)
    release_cached_memory()
    raise out_of_memory_error(work, failure, advice=advice)
