"""Which modules Liger's kernels replace. The kernels need a GPU: here stand-ins compute their formulas."""

import importlib
import sys
import types

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM

from pipelines.modeling import liger
from pipelines.modeling.liger import use_liger_kernels
from pipelines.modeling.packing import token_losses
from tests.modeling.test_packing import SMALL, unrelated_sequences

GROUPED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
CALLS = []


def swiglu_stand_in(gate, up):
    CALLS.append("swiglu")
    return F.silu(gate) * up


def rope_stand_in(query, key, cos, sin):
    CALLS.append("rope")
    cos, sin = cos[:, None], sin[:, None]

    def rotate(x):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    return rotate(query), rotate(key)


@pytest.fixture
def stand_ins(monkeypatch):
    """A package `liger_kernel` with the two functions, and no lower limit on tokens."""
    functional = types.ModuleType("liger_kernel.transformers.functional")
    functional.liger_swiglu, functional.liger_rope = swiglu_stand_in, rope_stand_in
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", types.ModuleType("liger_kernel.transformers"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", functional)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: functional)
    monkeypatch.setattr(liger, "MIN_TOKENS", 4)
    for name in ("llama", "gemma"):
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        monkeypatch.setattr(module, "apply_rotary_pos_emb", module.apply_rotary_pos_emb)
    CALLS.clear()


def random_model(name="LlamaConfig", **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, name)(**GROUPED, **settings)).eval()


def test_swiglu_is_replaced_and_gives_the_same_losses(stand_ins):
    model = random_model()
    expected = token_losses(model, unrelated_sequences())
    assert "swiglu" in use_liger_kernels(model)
    CALLS.clear()
    torch.testing.assert_close(token_losses(model, unrelated_sequences()), expected)
    assert CALLS.count("swiglu") == 3 * 2  # of four sequences, the one of three tokens stays as it was


def test_another_activation_is_left_alone(stand_ins):
    assert "swiglu" not in use_liger_kernels(random_model("GemmaConfig"))


def test_a_kernel_with_another_result_is_not_used(stand_ins, monkeypatch):
    monkeypatch.setattr(sys.modules["liger_kernel.transformers.functional"], "liger_swiglu", lambda gate, up: gate * up)
    model = random_model()
    assert "swiglu" not in use_liger_kernels(model)
    token_losses(model, unrelated_sequences())
    assert "swiglu" not in CALLS


def test_rope_is_replaced_for_half_precision_on_a_gpu_only(stand_ins):
    module = sys.modules["transformers.models.llama.modeling_llama"]
    original = module.apply_rotary_pos_emb
    model = random_model()
    assert "rope" in use_liger_kernels(model) and module.apply_rotary_pos_emb is not original
    token_losses(model, unrelated_sequences())
    assert "rope" not in CALLS  # on a CPU
    assert "rope" in use_liger_kernels(model)  # a second model finds it replaced


def test_without_the_package_nothing_is_replaced():
    assert use_liger_kernels(random_model()) == []
