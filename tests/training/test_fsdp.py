"""A sharded frozen base gives the losses and gradients of a complete one, whatever its dtypes."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from pipelines.modeling.adapters import trainable_parameters
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import token_losses
from pipelines.modeling.process_group import ProcessGroup
from pipelines.training.fsdp import shard_frozen_weights
from tests.forgetting.tiny_lora import rows
from tests.tiny import make_model
from tests.two_processes import run_in_two_processes

BASES = {"bf16": torch.bfloat16, "bf16 with fp32 norms": torch.bfloat16, "fp16": torch.float16}


def half_precision_lora(folder, name):
    torch.manual_seed(1)
    model = load_causal_lm(folder / "base", allow_half_precision=True)
    for module_name, weight in model.named_parameters():
        if name != "bf16 with fp32 norms" or "norm" not in module_name:
            weight.data = weight.data.to(BASES[name])
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for parameter_name, weight in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(weight, std=0.05)
    return model


def loss_and_gradients(model, dtype):
    with torch.autocast("cpu", dtype):
        loss = token_losses(model, rows(6)).mean()
    loss.backward()
    return loss.detach(), [weight.grad for weight in trainable_parameters(model)]


def sharded_and_complete(folder):
    results = {}
    for name, dtype in BASES.items():
        complete, model = half_precision_lora(folder, name), half_precision_lora(folder, name)
        group = shard_frozen_weights(model, ProcessGroup.current())
        weight = model.get_base_model().model.layers[0].mlp.gate_proj.weight
        results[name] = {
            "lockstep": group.lockstep,
            "shard": weight.to_local().numel() / weight.numel(),
            "dtypes": {str(parameter.dtype) for parameter in trainable_parameters(model)},
            "complete": loss_and_gradients(complete, dtype),
            "sharded": loss_and_gradients(model, dtype),
        }
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp")
    make_model(folder / "base")
    return run_in_two_processes(sharded_and_complete, folder)


@pytest.mark.parametrize("name", BASES)
def test_a_sharded_base_gives_the_same_gradients(results, name):
    for result in results:
        result = result[name]
        assert result["lockstep"] and result["shard"] == 0.5 and result["dtypes"] == {"torch.float32"}
        (loss, gradients), (complete_loss, complete_gradients) = result["sharded"], result["complete"]
        torch.testing.assert_close(loss, complete_loss, rtol=0, atol=0)
        for gradient, complete_gradient in zip(gradients, complete_gradients, strict=True):
            torch.testing.assert_close(gradient, complete_gradient, rtol=0, atol=0)


def test_a_single_process_keeps_the_complete_model(tmp_path):
    make_model(tmp_path / "base")
    model = half_precision_lora(tmp_path, "bf16")
    assert shard_frozen_weights(model, ProcessGroup()) == ProcessGroup()
    assert not any(hasattr(weight, "device_mesh") for weight in model.parameters())
