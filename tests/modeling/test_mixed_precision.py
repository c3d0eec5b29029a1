"""Where autocast is on, and that the emulated half precision of the tests has the dtypes of a GPU."""

import pytest
import torch

from pipelines.modeling import loading
from pipelines.modeling.mixed_precision import autocast
from tests.emulated_precision import DTYPES, emulated_precision
from tests.tiny import make_model


def product_dtype():
    with autocast("cpu"):
        return torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype


def test_the_cpu_computes_in_fp32():
    assert product_dtype() == torch.float32


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_emulation_has_the_dtypes_of_a_gpu(tmp_path, dtype):
    folder = make_model(tmp_path / "m")
    with emulated_precision(dtype):
        assert product_dtype() == dtype
        assert loading.load_causal_lm(folder, allow_half_precision=True).dtype == dtype
        assert loading.load_causal_lm(folder, allow_half_precision=False).dtype == torch.float32
    assert (
        product_dtype() == torch.float32
        and loading.load_causal_lm(folder, allow_half_precision=True).dtype == torch.float32
    )
