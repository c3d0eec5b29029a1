"""Models and adapters are loaded completely or not at all; settings in their folders have no hidden effect."""

import ast
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from pipelines.config.chat_template import PLAIN_TEXT
from pipelines.data.conversation import Conversation
from pipelines.errors import DataError, ModelError
from pipelines.evaluation.completions import LoadedModel, complete, generation_settings
from pipelines.modeling.loading import load_causal_lm
from tests.tiny import make_model
from tests.tiny_tokenizers import make_tokenizer


def rewrite(folder, change, name="model.safetensors"):
    save_file(change(load_file(folder / name)), folder / name, {"format": "pt"})


def without(part):
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


def edit(path, **values):
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, **values}))


@pytest.fixture
def folder(tmp_path):
    return make_model(tmp_path / "m")


def test_tied_weights_are_not_missing(folder):
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = load_causal_lm(folder, allow_half_precision=True)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layers.1.mlp.up_proj"), r"weights are missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (without("layers.1."), r"weights are missing: .* and 6 more"),
        (
            lambda tensors: {**tensors, "model.layers.7.extra.weight": torch.zeros(2)},
            r"have no use .*: model\.layers\.7\.extra\.weight",
        ),
        (
            lambda tensors: {("_orig_mod." + name): value for name, value in tensors.items()},
            "weights are missing.*have no use",
        ),
        (
            lambda tensors: {**tensors, "model.norm.weight": torch.zeros(31)},
            "cannot be loaded|another shape: model.norm.weight",
        ),
    ],
    ids=["a matrix", "a layer", "one too many", "renamed", "another shape"],
)
def test_weights_that_do_not_fit_are_errors(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ModelError, match=message) as error:
        load_causal_lm(folder, allow_half_precision=True)
    assert "\n" not in str(error.value)


def test_a_missing_untied_head_is_an_error(folder):
    edit(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"missing: lm_head\.weight"):
        load_causal_lm(folder, allow_half_precision=True)


def test_weights_that_the_architecture_ignores_are_allowed(tmp_path):
    """GPT-2's old checkpoints hold causal masks, which transformers declares as ignorable."""
    GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: {**tensors, "transformer.h.0.attn.bias": torch.zeros(1, 1, 32, 32)})
    load_causal_lm(tmp_path, allow_half_precision=True)


def answers(folder, **generation):
    loaded = LoadedModel.from_folder(folder)
    ids = [
        loaded.prompt_format.encode(Conversation.single_turn(text)).prompt_ids
        for text in ("tea in the inn", "nine gates", "a")
    ]
    return [one.text for one in complete(loaded, ids, {"do_sample": False, **generation}, [24] * 3)]


@pytest.mark.parametrize(
    "own",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 9.0},
        {"num_beams": 4},
        {"use_cache": False},
        {"max_length": 3, "min_new_tokens": 20},
        {"suppress_tokens": [30, 40, 50]},
        {"top_k": 1},
        {"max_new_tokens": 2},
        {"forced_eos_token_id": 5},
        {"cache_implementation": "static"},
        {"begin_suppress_tokens": [9]},
    ],
    ids=lambda own: next(iter(own)),
)
def test_generation_settings_of_the_folder_have_no_effect(folder, own):
    plain = answers(folder)
    edit(folder / "generation_config.json", **own)
    assert answers(folder) == plain
    assert answers(folder, repetition_penalty=5.0) != plain  # what the YAML says acts


def test_generation_settings_in_config_json_have_no_effect(folder):
    plain = answers(folder)
    edit(folder / "config.json", repetition_penalty=5.0, no_repeat_ngram_size=1, use_cache=False)
    assert answers(folder) == plain


def test_the_report_has_all_generation_settings(folder):
    settings = generation_settings(
        {"do_sample": False, "temperature": None, "max_new_tokens": 7},
        LoadedModel.from_folder(folder).prompt_format,
    )
    assert settings == {"do_sample": False, "max_new_tokens": 7, "stop_tokens": ["<|im_end|>"]}


def test_sampling_is_reproducible(folder):
    loaded = LoadedModel.from_folder(folder)
    ids = [loaded.prompt_format.encode(Conversation.single_turn(text)).prompt_ids for text in ("tea", "nine")]

    def sampled(seed):
        torch.rand(3)  # what the process drew before does not matter
        return [one.text for one in complete(loaded, ids, {"do_sample": True, "temperature": 1.0}, [12] * 2, seed=seed)]

    assert sampled(1) == sampled(1) != sampled(2)


def test_completions_end_at_the_context_length(tmp_path):
    """GPT-2 has no position after its last; a longer sequence would be an error in the forward pass."""
    tokenizer = make_tokenizer("pad_is_eos")
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=40, n_embd=16, n_layer=1, n_head=2)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = LoadedModel.from_folder(tmp_path, PLAIN_TEXT)
    prompt = loaded.prompt_format.encode(Conversation.single_turn("tea " * 8)).prompt_ids
    (answer,) = complete(loaded, [prompt], {"do_sample": False, "repetition_penalty": 9.0}, [500])
    assert len(prompt) + answer.num_generated_tokens <= 40
    with pytest.raises(
        DataError, match=r"prompt 2 of 2 has \d+ tokens with its reference; the model's context is 40 tokens"
    ):
        complete(
            loaded,
            [prompt, loaded.prompt_format.encode(Conversation.single_turn("tea " * 20)).prompt_ids],
            {"do_sample": False},
            [5, 5],
        )


@pytest.fixture
def adapter(folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    tuned = get_peft_model(
        model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False, task_type="CAUSAL_LM")
    )
    tuned.save_pretrained(tmp_path / "a")
    return tmp_path / "a"


FILE = "adapter_model.safetensors"


def test_a_complete_adapter(folder, adapter):
    LoadedModel.from_folder(folder).with_tuned_model(adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: rewrite(a, without("layers.1.self_attn.v_proj.lora_B"), FILE),
            r"weights are missing: .*v_proj\.lora_B",
        ),
        (
            lambda a: rewrite(a, lambda t: {**t, "base_model.model.x.lora_A.weight": torch.zeros(2)}, FILE),
            r"have no use .*x\.lora_A",
        ),
        (
            lambda a: rewrite(a, lambda t: {n: v[:1] if "lora_A" in n else v for n, v in t.items()}, FILE),
            "does not fit this base",
        ),
        (lambda a: (a / FILE).write_bytes((a / FILE).read_bytes()[:-9]), "is truncated"),
        (lambda a: (a / FILE).unlink(), f"has no {FILE}"),
        (lambda a: edit(a / "adapter_config.json", peft_type="NOVEL"), "does not fit this base"),
        (
            lambda a: edit(a / "tokenizer_config.json", auto_map={"AutoTokenizer": "x.X"}),
            r"requires custom code \(tokenizer_config.json\)",
        ),
    ],
    ids=["missing", "too many", "another shape", "cut off", "no file", "another kind", "code"],
)
def test_an_adapter_that_does_not_fit_is_an_error(folder, adapter, change, message):
    change(adapter)
    with pytest.raises(ModelError, match=message) as error:
        LoadedModel.from_folder(folder).with_tuned_model(adapter)
    assert "\n" not in str(error.value)


def test_no_class_is_loaded_with_remote_code():
    """Every call of from_pretrained, and of from_config of transformers, sets trust_remote_code=False."""
    calls = [
        (path, node)
        for path in Path("pipelines").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            node.func.attr == "from_pretrained"
            or (node.func.attr == "from_config" and "Auto" in ast.unparse(node.func.value))
        )
    ]
    assert len(calls) >= 5
    for path, call in calls:
        refused = [key.value for key in call.keywords if key.arg == "trust_remote_code"]
        assert refused and isinstance(refused[0], ast.Constant) and refused[0].value is False, f"{path}:{call.lineno}"
