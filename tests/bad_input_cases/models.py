"""Base models."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save

from tests.bad_input_cases.case import (
    CHECK,
    GOOD,
    WEIGHTS,
    Case,
    base,
    changed,
    forgetting,
    llama,
    model,
    with_module,
)

CASES = [
    Case("a misspelt model name", CHECK, config=base("smollm2-135m-instrct")),
    Case("a missing model folder", CHECK, config=base("./model")),
    Case("a model file instead of the folder", CHECK, config=base("./rows.jsonl")),
    Case("a model folder without weights", CHECK, **model(config="{}")),
    Case("pickled weights", CHECK, **model(config="{}", pickle=b"\x80\x04K\x01.")),
    Case(
        "an adapter next to a base model",
        CHECK,
        config=base("./model"),
        others={"model/config.json": "{}", "model/model.safetensors": "", "model/adapter_config.json": "{}"},
    ),
    Case(
        "an adapter as the base model",
        CHECK,
        config=base("./model"),
        others={
            "model/adapter_config.json": '{"base_model_name_or_path": "owner/name"}',
            "model/adapter_model.safetensors": "",
        },
    ),
    Case("an unknown target module", CHECK, **with_module("q_prj")),
    Case("a block as a target module", CHECK, **with_module("self_attn")),
    Case("invalid config.json", CHECK, **model(config="{", weights=b"")),
    Case(
        "a model with custom code",
        CHECK,
        **model(
            config='{"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling.M"}}',
            weights=b"",
            code="print(1)",
        ),
    ),
    Case(
        "weights that are a link out of the folder",
        CHECK,
        **model(config="{}"),
        links={"model/model.safetensors": "/etc/hostname"},
    ),
    Case("a model without a tokenizer", "preview job.yaml", **model(config='{"model_type": "llama"}', weights=b"x")),
    Case(
        "weights that are a Git LFS pointer",
        CHECK,
        **llama("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
    ),
    Case("truncated weights", CHECK, **llama(WEIGHTS[:-5])),
    Case("invalid weights", CHECK, **llama(b"not weights at all")),
    Case("shards without an index", CHECK, **llama(b"", shard=WEIGHTS)),
    Case(
        "a missing shard",
        CHECK,
        **llama(b"", shard=WEIGHTS, index='{"weight_map": {"a.weight": "model-00002-of-00002.safetensors"}}'),
    ),
    Case(
        "a shard without a tensor",
        CHECK,
        **llama(b"", shard=WEIGHTS, index='{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
    ),
    Case("a layer without weights", CHECK, **llama(settings={"num_hidden_layers": 3})),
    Case("weights of another vocabulary", CHECK, **llama(settings={"vocab_size": 9})),
    Case("weights of a compiled model", CHECK, **llama(save({"_orig_mod.a": np.zeros(2)}))),
    Case("a GPTQ model", CHECK, **llama(settings={"quantization_config": {"quant_method": "gptq", "bits": 4}})),
    Case("an encoder-decoder", CHECK, **llama(settings={"model_type": "t5", "is_encoder_decoder": True})),
    Case("an unknown model type", CHECK, **llama(settings={"model_type": "brandnew"})),
    Case(
        "a tokenizer with custom code",
        CHECK,
        **llama(tokenizer_config='{"auto_map": {"AutoTokenizer": ["tokenizing.T", null]}}'),
    ),
    Case("an attention kernel from the Hub", CHECK, **llama(settings={"_attn_implementation": "owner/kernel"})),
    Case(
        "a chat template that drops the prompt",
        CHECK,
        **llama(tokenizer_config="{}", template="{{ messages[0]['role'] }}"),
    ),
    Case(
        "a chat template that drops the system prompt",
        CHECK,
        **{
            **llama(tokenizer_config="{}", template="{{ messages[-1]['content'] }}"),
            "config": changed("smollm2-135m-instruct", "./model").replace("  tasks:", "  system: Be brief.\n  tasks:"),
        },
    ),
    Case(
        "a teacher without weights",
        CHECK,
        **{
            **model(config="{}"),
            "config": forgetting("{strategy: distill, distill: {teacher: ./model, apply_to: task}}"),
        },
    ),
    Case("trust_remote_code", CHECK, config=GOOD + "trust_remote_code: true\n"),
]
