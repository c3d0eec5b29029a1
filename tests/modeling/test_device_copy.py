import numpy as np
import torch

from pipelines.modeling.device_copy import copy_to_device, copy_together

ARRAYS = [np.arange(3), np.arange(0), np.arange(5, 7)]


def test_arrays_keep_their_values_and_dtype():
    for copies in (
        copy_together(ARRAYS, torch.device("cpu")),
        [copy_to_device(a, torch.device("cpu")) for a in ARRAYS],
    ):
        assert [copy.tolist() for copy in copies] == [array.tolist() for array in ARRAYS]
        assert all(copy.dtype == torch.int64 for copy in copies)


def test_arrays_on_another_device_have_their_lengths():
    assert [len(copy) for copy in copy_together(ARRAYS, torch.device("meta"))] == [3, 0, 2]
