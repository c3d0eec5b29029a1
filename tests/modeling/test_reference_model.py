"""The reference model has the logits of the base for every adapter type."""

import ast
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import pipelines
from pipelines.modeling.adapters import adapter_disabled, disabled_adapter_is_base
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.reference_model import ReferenceModel
from tests.forgetting.tiny_lora import rows
from tests.modeling.adapter_cases import CASES, NOT_SWITCHED_OFF, TYPES, accepted_types, attached, make_biased, move

pytestmark = pytest.mark.ludwig


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_biased(tmp_path_factory.mktemp("models") / "base")


@torch.no_grad()
def plain_logits(folder):
    """Logits of plain transformers, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    logits = []
    for index, ids in enumerate(rows().input_ids):
        logits.append(model(torch.from_numpy(ids)[None]).logits[0, rows().supervised_indices(index) - 1])
    return torch.cat(logits)


def test_the_cases_cover_all_supported_adapter_types():
    assert set(TYPES) == accepted_types()


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_base_before_and_after_training(base, name):
    expected = plain_logits(base)
    model = attached(base, name)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    values = [weight.detach().clone() for weight in trained]
    random = torch.get_rng_state()
    reference = ReferenceModel(model)
    assert (reference.frozen is None) == (name not in NOT_SWITCHED_OFF)
    assert all(
        weight.requires_grad and torch.equal(weight, value) for weight, value in zip(trained, values, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), random) or reference.frozen is not None
    torch.testing.assert_close(reference.logits(rows()), expected, atol=2e-4, rtol=2e-4)
    move(model)
    with torch.no_grad():
        moved, _ = supervised_logits(model.eval(), rows())
    assert (moved - expected).abs().max() > 1e-3 or name in ("coft", "vblora, top k", "vblora")
    torch.testing.assert_close(reference.logits(rows()), expected, atol=2e-4, rtol=2e-4)


def test_without_an_adapter_the_reference_is_a_frozen_copy(base):
    model = load_causal_lm(base, allow_half_precision=False)
    reference = ReferenceModel(model)
    move(model)
    torch.testing.assert_close(reference.logits(rows()), plain_logits(base), atol=2e-4, rtol=2e-4)


def test_disabling_the_adapter_keeps_requires_grad(base):
    model = attached(base, "lora")
    for name, weight in model.named_parameters():
        if "layers.0" in name:
            weight.requires_grad_(False)
    before = [weight.requires_grad for weight in model.parameters()]
    ReferenceModel(model).logits(rows())
    assert [weight.requires_grad for weight in model.parameters()] == before and any(before)


def test_reference_of_a_loaded_adapter(base, tmp_path):
    model = attached(base, "bias all")
    move(model)
    model.save_pretrained(tmp_path / "tuned")
    loaded = PeftModel.from_pretrained(load_causal_lm(base, allow_half_precision=True), tmp_path / "tuned")
    assert not disabled_adapter_is_base(loaded)
    with adapter_disabled(loaded), torch.no_grad():
        off, _ = supervised_logits(loaded, rows())
    assert (off - plain_logits(base)).abs().max() > 0.1
    torch.testing.assert_close(ReferenceModel(loaded).logits(rows()), plain_logits(base), atol=2e-4, rtol=2e-4)


def test_only_one_module_disables_adapters():
    modules = set()
    for path in Path(pipelines.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in (
                "disable_adapter",
                "disable_adapters",
                "disable_adapter_layers",
            ):
                modules.add(path.name)
    # fused_lora.py and packed_weights.py only read whether a layer is disabled.
    assert modules == {"adapters.py", "fused_lora.py", "packed_weights.py"}
