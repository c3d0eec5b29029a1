"""Adapters: saved and merged models have the logits of the trained model."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from pipelines.errors import ConfigError, RunError
from pipelines.forgetting.interpolation import InterpolatedModel, scale_model
from pipelines.modeling.adapters import (
    adapter_disabled,
    check_adapter_names,
    check_freeze_regex,
    check_matches_training,
    check_merged,
    initial_adapter_is_base,
    initial_adapter_weights,
    merge_adapter,
    peft_errors_as_config_error,
    save_adapter,
)
from pipelines.modeling.equivalence import probe_logits, probe_losses
from pipelines.modeling.loading import load_causal_lm
from tests.modeling.adapter_cases import CASES, attached, config_of, make_biased, move

pytestmark = pytest.mark.ludwig

BEGINS_ELSEWHERE = {"fourierft", "c3a", "vblora", "vblora, top k", "c3a, bias all", "c3a, bias c3a_only"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_biased(tmp_path_factory.mktemp("models") / "base")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=5e-4, rtol=5e-4)


@pytest.mark.parametrize("name", CASES)
def test_saved_loaded_and_merged_adapters_have_the_logits_of_the_trained_model(base, tmp_path, name):
    model = attached(base, name)
    assert initial_adapter_is_base(model) == (name not in BEGINS_ELSEWHERE)
    initial = initial_adapter_weights(model)
    move(model)
    expected = probe_logits(model)
    save_adapter(model, tmp_path / "tuned", initial)
    loaded = PeftModel.from_pretrained(load_causal_lm(base, allow_half_precision=True), tmp_path / "tuned")
    close(probe_logits(loaded), expected)
    if "bias" not in name:
        with adapter_disabled(loaded):
            close(probe_logits(loaded), probe_logits(load_causal_lm(base, allow_half_precision=True)))
    whole = merge_adapter(load_causal_lm(base, allow_half_precision=True), tmp_path / "tuned")
    close(probe_logits(whole), expected)
    whole.save_pretrained(tmp_path / "merged")
    again = load_causal_lm(tmp_path / "merged", allow_half_precision=True)
    close(probe_logits(again), expected)
    check_merged(tmp_path / "merged", whole, again)


@pytest.mark.parametrize("tied", [True, False])
def test_merging_unties_only_adapted_embeddings(tmp_path, tied):
    base = make_biased(tmp_path / "base", tied=tied)
    for name, expected in (("lora", tied), ("tied head", False)):
        model = attached(base, name)
        move(model)
        save_adapter(model, tmp_path / name, {})
        merge_adapter(load_causal_lm(base, allow_half_precision=True), tmp_path / name).save_pretrained(
            tmp_path / f"{name} merged"
        )
        assert json.loads((tmp_path / f"{name} merged" / "config.json").read_text())["tie_word_embeddings"] == expected
        assert ("lm_head.weight" in load_file(tmp_path / f"{name} merged" / "model.safetensors")) == (not expected)


def test_a_merge_that_changes_logits_is_an_error(base, tmp_path, monkeypatch):
    model = attached(base, "tied head")
    move(model)
    save_adapter(model, tmp_path / "tuned", {})
    monkeypatch.setattr("pipelines.modeling.adapters._adapts_tied_embeddings", lambda *_: False)
    with pytest.raises(RunError, match="merged into its base, this adapter gives other logits"):
        merge_adapter(load_causal_lm(base, allow_half_precision=True), tmp_path / "tuned")


def test_a_saved_model_is_compared_with_the_trained_one(base, tmp_path):
    model = attached(base, "lora")
    move(model)
    save_adapter(model, tmp_path / "tuned", {})
    (tmp_path / "tuned" / "training.json").write_text(json.dumps({"probe_losses": probe_losses(model).tolist()}))
    check_matches_training(
        PeftModel.from_pretrained(load_causal_lm(base, allow_half_precision=True), tmp_path / "tuned"),
        tmp_path / "tuned",
    )
    move(model, 0.01)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(RunError, match="has other losses than at the end of training"):
        check_matches_training(
            PeftModel.from_pretrained(load_causal_lm(base, allow_half_precision=True), tmp_path / "tuned"),
            tmp_path / "tuned",
        )


SCALED = [
    "lora",
    "gaussian",
    "orthogonal",
    "pissa",
    "pissa, rslora",
    "pissa, ranks",
    "olora",
    "rslora",
    "ranks",
    "tied head",
    "tied embedding",
]


@pytest.mark.parametrize("name", SCALED)
def test_interpolation_between_base_and_tuned(base, tmp_path, name):
    model, start = attached(base, name), probe_logits(load_causal_lm(base, allow_half_precision=True))
    initial = initial_adapter_weights(model)
    move(model)
    tuned = probe_logits(model)
    save_adapter(model, tmp_path / "tuned", initial)
    interpolated = InterpolatedModel(base, tmp_path / "tuned")
    for scale, expected in ((0.0, start), (1.0, tuned)):
        interpolated.set_scale(scale)
        close(probe_logits(interpolated.model), expected)
    interpolated.set_scale(0.3)
    scale_model(base, tmp_path / "tuned", 0.3)
    close(
        probe_logits(PeftModel.from_pretrained(load_causal_lm(base, allow_half_precision=True), tmp_path / "tuned")),
        probe_logits(interpolated.model),
    )


@pytest.mark.parametrize("name", ["bias all", "dora", "ia3", "ln_tuning"])
def test_adapters_that_cannot_be_scaled_are_errors(base, tmp_path, name):
    model = attached(base, name)
    move(model)
    save_adapter(model, tmp_path / "tuned", {})
    with pytest.raises(ConfigError, match="interpolate scales LoRA's matrices, and .* is trained as well"):
        InterpolatedModel(base, tmp_path / "tuned")


def test_full_models_whose_weight_names_lack_the_prefix(tmp_path):
    from safetensors.torch import save_file

    base, tuned = make_biased(tmp_path / "base"), make_biased(tmp_path / "tuned")
    start = load_file(base / "model.safetensors")
    save_file(
        {name.removeprefix("model."): value for name, value in start.items()},
        base / "model.safetensors",
        metadata={"format": "pt"},
    )
    save_file(
        {name: value + 1 for name, value in start.items()}, tuned / "model.safetensors", metadata={"format": "pt"}
    )
    scale_model(base, tuned, 0.25)
    for name, value in load_file(tuned / "model.safetensors").items():
        torch.testing.assert_close(value, start[name] + 0.25)


WRONG = {
    "a misspelt target": (
        {"target_modules": ["q_proj", "v_prj"]},
        "adapter.target_modules: the base has no module v_prj; did you mean v_proj?",
    ),
    "a norm": ({"target_modules": ["input_layernorm"]}, "input_layernorm is not a matrix, so lora cannot adapt it"),
    "a pattern": ({"rank_pattern": {"q_prj": 2}}, "adapter.rank_pattern: the base has no module q_prj"),
}


@pytest.mark.parametrize("case", WRONG)
def test_module_names_are_checked_on_the_loaded_model(base, case):
    more, message = WRONG[case]
    model = load_causal_lm(base, allow_half_precision=True)
    check_adapter_names(model, config_of("tied head"))
    with pytest.raises(ConfigError) as caught:
        check_adapter_names(model, config_of("lora").model_copy(update=more))
    assert message in str(caught.value)


def test_peft_errors_are_config_errors(base):
    model = load_causal_lm(base, allow_half_precision=True)
    model.config.model_type = "new_kind"
    without = config_of("lora").model_copy(update={"target_modules": None})
    named = r"PEFT has no defaults for lora on new_kind; write some of \[q_proj, k_proj, v_proj, o_proj"
    with pytest.raises(ConfigError, match=named), peft_errors_as_config_error(model, without):
        raise ValueError("Please specify `target_modules` in `peft_config`")
    refused = "adapter: PEFT cannot attach c3a to this model: The block size should be a factor"
    with pytest.raises(ConfigError, match=refused), peft_errors_as_config_error(model, config_of("c3a")):
        raise ValueError("The block size should be a factor\nof the size")


FREEZING = {
    r"layers\.0\.": None,
    "lora_A": None,
    "no_such": "matches no weight of the model",
    "embed_tokens": "only weights that are not trained",
    ".": "matches all 12",
}


@pytest.mark.parametrize("regex", FREEZING)
def test_freeze_regex_with_an_adapter(base, regex):
    model = SimpleNamespace(named_parameters=attached(base, "lora").named_parameters)
    if FREEZING[regex] is None:
        check_freeze_regex(model, regex)
    else:
        with pytest.raises(ConfigError, match=FREEZING[regex]):
            check_freeze_regex(model, regex)
