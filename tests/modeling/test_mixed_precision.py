"""Where autocast is on, and that the emulated half precision of the tests has the dtypes of a GPU."""

import pytest
import torch

from pipelines.errors import MachineError
from pipelines.modeling import hardware, loading
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


def overflowing_model(folder):
    """A model whose logits are beyond the range of fp16."""
    model = loading.load_causal_lm(make_model(folder, tie_word_embeddings=False), allow_half_precision=True)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e7)
    model.save_pretrained(folder)
    return folder


def test_a_model_that_overflows_in_fp16_is_loaded_in_fp32(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(hardware, "_fp32_reason", None)  # restored afterwards
    folder = overflowing_model(tmp_path / "m")
    with emulated_precision(torch.float16), caplog.at_level("WARNING"):
        model = loading.load_causal_lm(folder, allow_half_precision=True)
        assert model.dtype == torch.float32 and product_dtype() == torch.float32
        assert not hardware.current_hardware().scales_loss
        assert hardware.current_hardware().reason == "LlamaForCausalLM overflows in fp16"
    assert loading.supports_packing(model)
    assert caplog.messages == ["LlamaForCausalLM overflows in fp16, so it runs in fp32"]
    with emulated_precision(torch.bfloat16):
        assert loading.load_causal_lm(folder, allow_half_precision=True).dtype == torch.bfloat16


def test_a_model_that_overflows_in_the_required_fp16_is_an_error(tmp_path, monkeypatch):
    folder = overflowing_model(tmp_path / "m")
    required = hardware.Hardware(torch.device("cpu"), torch.float16, reason=hardware.CONFIGURED)
    monkeypatch.setattr(hardware, "_current", required)
    with pytest.raises(MachineError, match="dtype: fp16: LlamaForCausalLM overflows in fp16; use dtype: auto or fp32"):
        loading.load_causal_lm(folder, allow_half_precision=True)
