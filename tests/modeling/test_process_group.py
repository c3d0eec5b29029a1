"""The rows of a step are distributed over the processes, which wait for rank 0 without a limit."""

import itertools
import time

import numpy as np

from pipelines.modeling.process_group import ProcessGroup
from pipelines.modeling.token_sequences import TokenSequences
from tests.two_processes import TIMEOUT, run_in_two_processes


def test_shards_are_a_partition_of_the_rows_with_about_equal_tokens():
    lengths = [90, 3, 41, 40, 8, 60, 2, 55]
    sequences = TokenSequences.supervised_from([np.full(length, length) for length in lengths], [1] * len(lengths))
    shards = [ProcessGroup(rank, 3).shard(sequences) for rank in range(3)]
    assert sorted(len(ids) for shard in shards for ids in shard.input_ids) == sorted(lengths)
    tokens = [shard.num_tokens for shard in shards]
    assert max(tokens) - min(tokens) < 20
    assert ProcessGroup().shard(sequences) is sequences
    assert len(ProcessGroup(2, 3).shard(sequences[0:2])) == 0


def wait_for_rank_0(folder):
    """Rank 0 works for longer than the default group would wait; rank 1 finds its result."""
    group, result = ProcessGroup.current(), folder / "measured"
    times = [time.monotonic()]
    with group.main_process_first():
        if group.rank == 0:
            time.sleep(1.5 * TIMEOUT.total_seconds())
            result.write_text("measured")
        found = result.exists()
    times.append(time.monotonic())
    value = group.broadcast_from_rank0(lambda: time.sleep(1.5 * TIMEOUT.total_seconds()) or "computed")
    times.append(time.monotonic())
    return {"found": found, "value": value, "seconds": [end - start for start, end in itertools.pairwise(times)]}


def test_work_of_rank_0_may_take_longer_than_the_timeout_of_the_group(tmp_path):
    for result in run_in_two_processes(wait_for_rank_0, tmp_path):
        assert result["found"] and result["value"] == "computed"
        assert min(result["seconds"]) > TIMEOUT.total_seconds()
