"""Model folders that are incomplete, need custom code or cannot be fine-tuned are errors of one line, without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.errors import ModelError
from pipelines.modeling.model_folder import causal_model_types, check_model_folder

WEIGHTS = {
    "model.embed_tokens.weight": (12, 4),
    **{f"model.layers.{layer}.self_attn.q_proj.weight": (4, 4) for layer in range(2)},
    "model.norm.weight": (4,),
}


def make_folder(folder, config=(), weights=WEIGHTS, rename=lambda name: name, **files):
    folder.mkdir(exist_ok=True)
    whole = {"model_type": "llama", "vocab_size": 12, "num_hidden_layers": 2, **dict(config)}
    (folder / "config.json").write_text(json.dumps(whole))
    save_file(
        {rename(name): np.zeros(shape, dtype=np.float16) for name, shape in weights.items()},
        folder / "model.safetensors",
    )
    (folder / "tokenizer.json").write_text("{}")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def refused(folder):
    with pytest.raises(ModelError) as error:
        check_model_folder(folder)
    assert len(error.value.problems) == 1 and "\n" not in str(error.value)
    return str(error.value)


def test_a_complete_folder(tmp_path):
    check_model_folder(make_folder(tmp_path / "m"))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}},
        {"generation_config": {"custom_generate": "owner/name"}},
        {"processor_config": {"auto_map": {"AutoProcessor": "processing_x.X"}}},
        {"preprocessor_config": {"inner": [{"auto_map": {"AutoImageProcessor": "x.X"}}]}},
        {"adapter_config": {"auto_map": {}}},
    ],
    ids=lambda files: next(iter(files)),
)
def test_files_that_name_code_are_errors(tmp_path, files):
    assert f"({next(iter(files))}.json)" in refused(make_folder(tmp_path / "m", **files))


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModelForCausalLM": "modeling.M"}},
        {"custom_pipelines": {"x": {"impl": "x.X"}}},
        {"text_config": {"auto_map": {"AutoConfig": "c.C"}}},
        {"_attn_implementation": "owner/kernel"},
        {"attn_implementation": "owner/kernel"},
    ],
)
def test_configs_that_name_code_are_errors(tmp_path, config):
    assert "(config.json), which alfine does not execute" in refused(make_folder(tmp_path / "m", config))


def test_a_custom_generate_function_is_an_error(tmp_path):
    folder = make_folder(tmp_path / "m")
    (folder / "custom_generate").mkdir()
    assert "(custom_generate/)" in refused(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized weights (gptq)"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized weights (awq)"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "of type t5, an encoder-decoder"),
        ({"model_type": "whatever"}, "of type whatever, for which this transformers has no causal language model"),
        ({"model_type": None}, "has no model_type"),
        ({"num_hidden_layers": 3}, "says 3 layers, its weights have no layer 2"),
        ({"vocab_size": 13}, "says vocab_size 13, its weights have 12 token embeddings"),
    ],
)
def test_configs_that_do_not_fit_are_errors(tmp_path, config, message):
    assert message in refused(make_folder(tmp_path / "m", config))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_weight_names_with_a_wrappers_prefix_are_errors(tmp_path, prefix):
    assert f"start with {prefix!r}" in refused(make_folder(tmp_path / "m", rename=lambda name: prefix + name))


def test_a_missing_layer_is_an_error(tmp_path):
    weights = {name: shape for name, shape in WEIGHTS.items() if "layers.0" not in name}
    assert "have no layer 0" in refused(make_folder(tmp_path / "m", weights=weights))


def test_causal_model_types():
    known = causal_model_types()
    assert {"llama", "qwen3", "gemma2", "gpt2", "mistral", "phi3"} <= known and not {"t5", "bert_japanese"} & known


def test_torch_is_not_imported(tmp_path):
    make_folder(tmp_path / "m")
    code = (
        "import sys; from pathlib import Path; from pipelines.modeling.model_folder import check_model_folder as c; c(Path(sys.argv[1])); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], check=True)
