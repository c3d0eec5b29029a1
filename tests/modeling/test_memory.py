"""Out of memory is recognized, work goes on in smaller parts, and the error has numbers."""

import ctypes

import numpy as np
import psutil
import pytest
import torch

from pipelines.errors import MachineError
from pipelines.modeling import memory
from pipelines.modeling.memory import (
    OutOfMemory,
    attempt,
    halve_until_it_fits,
    is_out_of_memory,
    machine_error_on_out_of_memory,
    retry_smaller,
    split_tokens,
)
from pipelines.modeling.token_sequences import TokenSequences

FAILURES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.00 GiB"),
    MemoryError(),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB). Tried to allocate 256.00 MB on private pool."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8000000 bytes."
    ),
]


def sequences(*lengths):
    return TokenSequences.supervised_from([np.arange(length, dtype=np.int32) for length in lengths], [1] * len(lengths))


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: str(error)[:20] or "MemoryError")
def test_every_kind_of_out_of_memory_is_recognized(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        attempt(lambda: fail(error))


def fail(error):
    raise error


def test_size_of_the_failed_allocation():
    sizes = [OutOfMemory.from_error(error).allocation for error in FAILURES]
    assert sizes == [int(2.5 * 2**30), None, None, None, 256 * 2**20, 8_000_000]


def limited(max_tokens):
    """A computation that needs memory for `max_tokens` tokens, and the sizes that it was called with."""
    calls = []

    def compute(batch):
        calls.append(batch.num_tokens)
        if batch.num_tokens > max_tokens:
            raise FAILURES[0]
        return [len(ids) for ids in batch.input_ids]

    return compute, calls


def test_a_pass_goes_on_with_smaller_batches():
    compute, calls = limited(12)
    splitter = split_tokens("a pass")
    batches = [sequences(4, 5, 6, 7), sequences(8, 3, 2), sequences(2, 9)]
    results = [result for batch in batches for _, part in splitter.map(compute, batch) for result in part]
    assert results == [4, 5, 6, 7, 8, 3, 2, 2, 9]
    # 22 tokens fail, then 11 are the limit: the second half (13) is split before it is tried.
    assert calls == [22, 9, 6, 7, 11, 2, 11]


def test_one_row_that_does_not_fit_is_an_error_with_numbers():
    compute, _ = limited(5)
    with pytest.raises(MachineError) as caught:
        list(split_tokens("the validation loss").map(compute, sequences(3, 8)))
    message = str(caught.value)
    assert message.startswith(
        "out of memory during the validation loss with 1 row of 8 tokens (an allocation of 2.7 GB"
    )
    assert "GB of main memory are free" in message and message.endswith("an adapter, or quantization")


def test_batches_that_must_not_be_split_are_an_error():
    compute, calls = limited(5)
    with pytest.raises(MachineError, match="with 2 rows of 11 tokens"):
        list(split_tokens("the validation loss", can_split=False).map(compute, sequences(3, 8)))
    assert calls == [11]


def test_halving_starts_over():
    sizes = []

    def compute(rows):
        sizes.append(rows)
        return rows if rows <= 2 else fail(FAILURES[0])

    assert halve_until_it_fits(compute, 8, sequences(*[3] * 20), "it") == 2 and sizes == [8, 4, 2]
    with pytest.raises(MachineError, match="out of memory during it with 1 row of 9 tokens"):
        halve_until_it_fits(lambda rows: fail(FAILURES[0]), 8, sequences(9, 3), "it")


def test_retry_ends_when_nothing_is_smaller():
    left = [True, True, False]
    with pytest.raises(MachineError, match="no"):
        retry_smaller(lambda: fail(FAILURES[0]), lambda: left.pop(0), lambda failure: MachineError("no"))
    assert left == []


def test_memory_is_released_before_the_next_attempt(monkeypatch):
    """Otherwise the activations of the failed attempt, which its traceback references, would still be there."""

    class Activation:
        alive = 0

        def __init__(self):
            Activation.alive += 1

        def __del__(self):
            Activation.alive -= 1

    released = []
    monkeypatch.setattr(memory, "release_cached_memory", lambda: released.append(Activation.alive))

    def compute():
        activation = Activation()
        raise torch.OutOfMemoryError(str(activation))

    assert isinstance(attempt(compute), OutOfMemory) and released == [0]


def test_work_that_cannot_be_split():
    with (
        pytest.raises(MachineError, match=r"during the loading of a model \(.* free without it\); use a smaller model"),
        machine_error_on_out_of_memory("the loading of a model", "a smaller model"),
    ):
        raise FAILURES[2]
    with pytest.raises(RuntimeError, match="shapes"), machine_error_on_out_of_memory("it"):
        raise RuntimeError("shapes")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the allocator is not glibc's")
def test_the_heap_between_tensors_that_stay_is_returned():
    process = psutil.Process()
    memory.return_free_heap()
    kept, freed = [], []
    for _ in range(400):  # below the size from which glibc maps memory of its own
        freed.append(torch.ones(25_000))
        kept.append(torch.ones(500))
    before = process.memory_info().rss
    freed.clear()
    memory.return_free_heap()
    assert before - process.memory_info().rss > 30e6 and len(kept) == 400
