"""Quantization: the settings of the config become those of transformers, with the same defaults as in Ludwig."""

import pytest

from pipelines.modeling.quantization import bitsandbytes_config


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
