"""Every adapter type and option that alfine supports, for a tiny model."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipelines.config.ludwig_unsupported import UNSUPPORTED_VALUES
from pipelines.config.schema import ludwig_fields
from tests.tiny_tokenizers import make_tokenizer

TARGETS = ["q_proj", "v_proj", "down_proj"]
TYPES = {
    "lora": {"r": 4, "alpha": 8},
    "ia3": {"feedforward_modules": ["down_proj"]},
    "vera": {"r": 4},
    "loha": {"r": 4},
    "lokr": {"r": 4},
    "fourierft": {"n_frequency": 20},
    "boft": {},
    "tinylora": {},
    "c3a": {"block_size": 16},
    "oft": {"oft_block_size": 8, "r": 0},
    "hra": {},
    "waveft": {"n_frequency": 20},
    "ln_tuning": {"target_modules": ["input_layernorm"]},
    "vblora": {"vector_length": 8, "num_vectors": 16},
}
OPTIONS = {
    "gaussian": ("lora", {"init_lora_weights": "gaussian"}),
    "orthogonal": ("lora", {"init_lora_weights": "orthogonal"}),
    "pissa": ("lora", {"init_lora_weights": "pissa"}),
    "pissa, rslora": ("lora", {"init_lora_weights": "pissa", "use_rslora": True}),
    "pissa, ranks": (
        "lora",
        {"init_lora_weights": "pissa", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    ),
    "pissa, dora": ("lora", {"init_lora_weights": "pissa", "use_dora": True}),
    "pissa, embedding": ("lora", {"init_lora_weights": "pissa", "target_modules": ["embed_tokens", "q_proj"]}),
    "olora": ("lora", {"init_lora_weights": "olora"}),
    "rslora": ("lora", {"use_rslora": True}),
    "dora": ("lora", {"use_dora": True}),
    "bias all": ("lora", {"bias_type": "all"}),
    "bias lora_only": ("lora", {"bias_type": "lora_only"}),
    "ranks": ("lora", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "tied head": ("lora", {"target_modules": ["lm_head", "q_proj"]}),
    "tied embedding": ("lora", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied, both": ("lora", {"target_modules": ["embed_tokens", "lm_head"]}),
    "ia3, tied head saved": ("ia3", {"modules_to_save": ["lm_head"]}),
    "ia3, tied embedding saved": ("ia3", {"modules_to_save": ["embed_tokens"]}),
    "c3a, bias all": ("c3a", {"bias_type": "all"}),
    "c3a, bias c3a_only": ("c3a", {"bias_type": "c3a_only"}),
    "coft": ("oft", {"coft": True}),
    "vblora, top k": ("vblora", {"save_only_topk_weights": True}),
    "tinylora, no projection": ("tinylora", {"save_projection": False}),
}
CASES = {kind: (kind, {}) for kind in TYPES} | OPTIONS
NOT_SWITCHED_OFF = {name for name in CASES if "pissa" in name or "olora" in name or "bias" in name}
"""Cases in which the model with its adapter disabled is not the base."""


def accepted_types() -> set[str]:
    return {kind for kind in ludwig_fields()["adapter"]["variants"] if ("adapter.type", kind) not in UNSUPPORTED_VALUES}


def section(name):
    """The section `adapter` of a case."""
    kind, more = CASES[name]
    return {"type": kind, "target_modules": TARGETS, **TYPES[kind], **more}


def config_of(name):
    """Ludwig's config of a case."""
    from ludwig.schema.llms.peft import adapter_registry

    return adapter_registry[CASES[name][0]].model_validate(section(name))


def make_biased(folder: Path, *, tied: bool = True) -> Path:
    """A two-layer Llama whose projections have biases, and whose output layer is tied."""
    if folder.exists():
        return folder
    torch.manual_seed(0)
    tokenizer = make_tokenizer("pad_is_eos")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=tied,
        attention_bias=True,
        mlp_bias=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def attached(folder: Path, name: str):
    """The base in `folder` with a new adapter, as Ludwig attaches it."""
    from peft import get_peft_model

    from pipelines.modeling.loading import load_causal_lm

    torch.manual_seed(7)
    return get_peft_model(
        load_causal_lm(folder, allow_half_precision=True), config_of(name).to_config(task_type="CAUSAL_LM")
    )


@torch.no_grad()
def move(model, by=0.05):
    """What a training would do: every trained weight moves."""
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(by * torch.randn(weight.shape, generator=generator))
