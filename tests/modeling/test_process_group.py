"""The rows of a step are distributed over the processes."""

import numpy as np

from pipelines.modeling.process_group import ProcessGroup
from pipelines.modeling.token_sequences import TokenSequences


def test_shards_are_a_partition_of_the_rows_with_about_equal_tokens():
    lengths = [90, 3, 41, 40, 8, 60, 2, 55]
    sequences = TokenSequences.supervised_from([np.full(length, length) for length in lengths], [1] * len(lengths))
    shards = [ProcessGroup(rank, 3).shard(sequences) for rank in range(3)]
    assert sorted(len(ids) for shard in shards for ids in shard.input_ids) == sorted(lengths)
    tokens = [shard.num_tokens for shard in shards]
    assert max(tokens) - min(tokens) < 20
    assert ProcessGroup().shard(sequences) is sequences
    assert len(ProcessGroup(2, 3).shard(sequences[0:2])) == 0
