"""The memory plan against what torch saves and what PEFT trains."""

from types import SimpleNamespace

import pytest

from pipelines.planning.memory import activation_bytes_per_token, trainable_parameters
from pipelines.planning.model_shape import ModelShape
from pipelines.planning.target_hardware import GPUS, TargetHardware

CPU = TargetHardware("cpu", "cpu", 8 << 30, 1e11, 1e10, "fp32")
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 800,
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_job(adapter, **trainer):
    return SimpleNamespace(adapter=adapter, trainer=trainer)


def make_config(kind):
    import transformers

    extra = {} if kind == "Llama" else {"head_dim": 16}
    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    return getattr(transformers, name)(**SIZES, **extra, eos_token_id=2, bos_token_id=1, pad_token_id=0)


def shape_of(config):
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_config(config).state_dict()
    return ModelShape.from_config(config.to_dict(), {name: tuple(value.shape) for name, value in state.items()}, 0)


@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma3"])
@pytest.mark.parametrize(
    "adapter",
    [
        None,
        {"type": "lora", "r": 8, "dropout": 0.0, "target_modules": ALL},
        {"type": "lora", "r": 8, "dropout": 0.1, "target_modules": ALL},
        {"type": "lora", "r": 4, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
        {"type": "lora", "r": 4, "dropout": 0.0, "target_modules": ["down_proj"]},
    ],
)
def test_activations_are_those_that_torch_saves(kind, adapter):
    from tests.planning.activations import saved_bytes_per_token

    config = make_config(kind)
    lora = adapter and {
        "r": adapter["r"],
        "lora_dropout": adapter["dropout"],
        "target_modules": adapter["target_modules"],
    }
    shape = shape_of(config)
    matrices = [] if adapter is None else shape.adapted_matrices(adapter["target_modules"])
    planned = activation_bytes_per_token(make_job(adapter), shape, matrices, CPU) / shape.layers
    assert planned == pytest.approx(saved_bytes_per_token(config, lora), rel=0.01)


@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"], "all-linear", None])
def test_trainable_parameters_are_those_of_peft(targets):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = make_config("Llama")
    shape = shape_of(config)
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=8, target_modules=targets))
    expected = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    job = make_job({"type": "lora", "r": 8, "target_modules": targets})
    assert trainable_parameters(job, shape, shape.adapted_matrices(targets)) == expected


def test_without_an_adapter_every_weight_is_trained():
    shape = shape_of(make_config("Llama"))
    assert trainable_parameters(make_job(None), shape, []) == shape.parameters


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all():
    shape = shape_of(make_config("Llama"))
    matrices = shape.adapted_matrices(ALL)
    adapter = {"type": "lora", "r": 8, "dropout": 0.0, "target_modules": ALL}
    all_layers = activation_bytes_per_token(make_job(adapter), shape, matrices, CPU)
    checkpointed = activation_bytes_per_token(
        make_job(adapter, enable_gradient_checkpointing=True), shape, matrices, CPU
    )
    assert checkpointed == pytest.approx(all_layers / shape.layers + 4 * shape.layers * shape.hidden)


def test_activations_on_a_gpu_have_half_the_size():
    shape = shape_of(make_config("Llama"))
    job = make_job(None)
    on_cpu, on_gpu = (activation_bytes_per_token(job, shape, [], hardware) for hardware in (CPU, GPUS["h100"]))
    assert on_gpu == on_cpu / 2
