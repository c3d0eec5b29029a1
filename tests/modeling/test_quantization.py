"""Quantization: the settings of the config become those of transformers, with the same defaults as in Ludwig."""

import pytest
import torch

from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import token_losses
from pipelines.modeling.quantization import bitsandbytes_config, num_parameters
from tests.forgetting.tiny_lora import rows
from tests.tiny import make_model


@pytest.mark.ludwig
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bits": 4},
        {
            "bits": 4,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_type": "fp4",
            "bnb_4bit_use_double_quant": False,
        },
        {"bits": 8, "llm_int8_threshold": 5.0, "llm_int8_has_fp16_weight": True},
    ],
)
def test_settings_are_those_of_ludwig(settings):
    from ludwig.schema.llms.quantization import QuantizationConfig

    ludwigs = QuantizationConfig.model_validate(dict(settings))
    assert bitsandbytes_config(settings).to_dict() == ludwigs.to_bitsandbytes().to_dict()
    assert bitsandbytes_config(ludwigs.model_dump()).to_dict() == ludwigs.to_bitsandbytes().to_dict()


@pytest.mark.parametrize(
    ("settings", "dtype", "expected"),
    [
        ({}, torch.bfloat16, torch.bfloat16),
        ({}, torch.float16, torch.float16),
        ({}, torch.float32, torch.float16),
        ({"bnb_4bit_compute_dtype": "float32"}, torch.bfloat16, torch.float32),
        ({"bits": 4, "bnb_4bit_compute_dtype": "float16"}, torch.bfloat16, torch.float16),
    ],
)
def test_the_products_are_computed_in_the_half_precision_of_the_hardware(settings, dtype, expected):
    assert bitsandbytes_config(settings, dtype).bnb_4bit_compute_dtype == expected


@pytest.mark.ludwig
def test_ludwigs_defaults_do_not_count_as_settings():
    from ludwig.schema.llms.quantization import QuantizationConfig

    settings = QuantizationConfig.model_validate({"bits": 4}).model_dump(exclude_unset=True)
    assert bitsandbytes_config(settings, torch.bfloat16).bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [4, 8])
def test_counts_are_those_of_the_unquantized_model(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    folder = make_model(tmp_path / "base")
    expected = load_causal_lm(folder, allow_half_precision=True).num_parameters()
    model = load_causal_lm(folder, allow_half_precision=True, quantization={"bits": bits})
    assert num_parameters(model.parameters()) == expected


def test_a_4_bit_base_has_the_same_gradients_after_an_evaluation(tmp_path):
    """bitsandbytes packs the weights for inference on some CPUs, in a layout that a backward pass does not read."""
    pytest.importorskip("bitsandbytes")
    settings = {"bits": 4, "bnb_4bit_compute_dtype": "float32"}
    model = load_causal_lm(make_model(tmp_path / "base"), allow_half_precision=True, quantization=settings)
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    embedding = model.get_input_embeddings().weight.requires_grad_()

    def gradient():
        model.train()
        embedding.grad = None
        token_losses(model, rows()).sum().backward()
        return embedding.grad

    before = gradient()
    with torch.no_grad():
        evaluated = token_losses(model.eval(), rows())
    torch.testing.assert_close(evaluated, token_losses(model.train(), rows()).detach())
    torch.testing.assert_close(gradient(), before)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.named_parameters())
