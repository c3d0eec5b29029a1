"""The sizes of a model that decide about memory and time, read from config.json and the headers of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipelines.modeling.base_models import config_context_length
from pipelines.modeling.model_folder import LAYER_INDEX, read_config, text_config
from pipelines.modeling.module_names import Modules, weight_shapes

DEFAULT_LORA_TARGETS = (("q_proj", "v_proj"), ("query_key_value",), ("c_attn",), ("query", "value"), ("q", "v"))
"""The first of these groups that a model has is what PEFT adapts if `target_modules` is not set
(peft/utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)."""
QUERY_KEY_VALUE = {"q_proj", "k_proj", "v_proj", "query_key_value", "qkv_proj", "c_attn", "query", "key", "value"}
MLP_INPUTS = {"gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "dense_h_to_4h", "w1", "w3"}
ATTENTION_OUTPUTS = {"o_proj", "out_proj", "dense", "attention.c_proj", "attn.c_proj"}
MLP_OUTPUTS = {"down_proj", "dense_4h_to_h", "fc2", "mlp.c_proj", "w2"}


@dataclass(frozen=True)
class AdaptedMatrix:
    """A matrix of the base that the adapter changes: the module's name and the sizes of its input and output."""

    module: str
    inputs: int
    outputs: int

    @property
    def kind(self) -> str:
        """Which activation it reads: "attention" (the normalised input of the attention), "attention_output", "mlp"
        (the normalised input of the MLP), "mlp_output", or "other"."""
        path = self.module.split(".")
        names = {path[-1], ".".join(path[-2:])}
        kinds = {
            "attention": QUERY_KEY_VALUE,
            "attention_output": ATTENTION_OUTPUTS,
            "mlp": MLP_INPUTS,
            "mlp_output": MLP_OUTPUTS,
        }
        return next((kind for kind, known in kinds.items() if names & known), "other")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder-only transformer.

    Attributes:
        parameters: all weights, tied ones once.
        embedding_parameters: those of the input embedding and of an untied output layer.
        active_parameters: those that take part in the pass of a token, without the input embedding: fewer than all in
            a mixture of experts.
        attention_width: heads times head size: the width of the queries.
        key_value_width: the same of the keys.
        mlp_width: the width inside the MLP (of a mixture of experts: of all experts of a token together).
        is_gated: whether the MLP has a gate, as SwiGLU has.
        norms_per_layer: norms of the hidden width in a layer.
        has_query_norm: whether queries and keys are normalised.
        weight_bytes: the bytes of the files.
    """

    layers: int
    hidden: int
    attention_width: int
    key_value_width: int
    heads: int
    mlp_width: int
    is_gated: bool
    norms_per_layer: int
    has_query_norm: bool
    vocabulary: int
    parameters: int
    embedding_parameters: int
    active_parameters: int
    weight_bytes: int
    context_length: int
    modules: Modules

    @classmethod
    def from_folder(cls, folder: Path) -> ModelShape:
        """Reads a model's folder. Raises ModelError for headers that cannot be read."""
        weight_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return cls.from_config(read_config(folder), weight_shapes(folder), weight_bytes)

    @classmethod
    def from_config(
        cls, whole: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], weight_bytes: int
    ) -> ModelShape:
        """`whole` is config.json, `shapes` the shape of every weight by name."""
        config = text_config(dict(whole))
        hidden = _first(config, "hidden_size", "n_embd", "d_model")
        layers = _first(config, "num_hidden_layers", "n_layer", "num_layers")
        heads = _first(config, "num_attention_heads", "n_head")
        head_size = int(config.get("head_dim") or hidden // heads)
        vocabulary = _first(config, "vocab_size")
        parameters = sum(prod(shape) for shape in shapes.values())
        embeddings = [shape for name, shape in shapes.items() if _is_vocabulary(name, shape, vocabulary)]
        embedding_parameters = sum(prod(shape) for shape in embeddings)
        expert_parameters = sum(prod(shape) for name, shape in shapes.items() if ".experts." in name)
        experts = _optional(config, "num_local_experts", "num_experts", "n_routed_experts")
        used = _optional(config, "num_experts_per_tok", "moe_top_k") if experts else 0
        input_embedding = vocabulary * hidden if len(embeddings) > 1 else 0
        active = parameters - input_embedding - (expert_parameters * (experts - used) // experts if experts else 0)
        mlp_width = _optional(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
        if experts:
            mlp_width = used * (_optional(config, "moe_intermediate_size") or mlp_width)
        return cls(
            layers=layers,
            hidden=hidden,
            attention_width=heads * head_size,
            key_value_width=(_optional(config, "num_key_value_heads") or heads) * head_size,
            heads=heads,
            mlp_width=mlp_width,
            is_gated=any("gate_proj" in name or "gate_up_proj" in name or ".w3." in name for name in shapes),
            norms_per_layer=round(sum(_is_norm(name, shape, hidden) for name, shape in shapes.items()) / layers) or 2,
            has_query_norm=any("q_norm" in name or "q_layernorm" in name for name in shapes),
            vocabulary=vocabulary,
            parameters=parameters,
            embedding_parameters=embedding_parameters,
            active_parameters=active,
            weight_bytes=weight_bytes,
            context_length=config_context_length(dict(whole)),
            modules=Modules(shapes),
        )

    def adapted_matrices(self, targets: str | Sequence[str] | None) -> list[AdaptedMatrix]:
        """The matrices that an adapter with these `target_modules` changes; None for PEFT's default."""
        names = (
            self.modules.matrices() if targets == "all-linear" else [targets] if isinstance(targets, str) else targets
        )
        if not names:
            known = set(self.modules.short_names())
            names = next((group for group in DEFAULT_LORA_TARGETS if known.intersection(group)), ())
        matched = dict.fromkeys(module for name in names for module in self.modules.match(name))
        matrices = [(module, self.modules.shapes[module]) for module in matched]
        return [AdaptedMatrix(module, shape[1], shape[0]) for module, shape in matrices if len(shape) == 2]

    def key_value_bytes(self, bytes_per_value: int) -> int:
        """The bytes of the cached keys and values of one token."""
        return 2 * self.layers * self.key_value_width * bytes_per_value


def _is_vocabulary(name: str, shape: Sequence[int], vocabulary: int) -> bool:
    return len(shape) == 2 and shape[0] >= vocabulary and ("embed" in name or "wte" in name or "lm_head" in name)


def _is_norm(name: str, shape: Sequence[int], hidden: int) -> bool:
    module = name.removesuffix(".weight").rpartition(".")[2].lower()
    is_norm = ("norm" in module or module.startswith("ln_")) and not module.startswith(("q_", "k_"))
    return is_norm and LAYER_INDEX.search(name) is not None and name.endswith(".weight") and tuple(shape) == (hidden,)


def _first(config: Mapping[str, Any], *keys: str) -> int:
    return _optional(config, *keys) or 1


def _optional(config: Mapping[str, Any], *keys: str) -> int:
    """The first of the keys that has a whole number; 0 if none has."""
    return next((int(config[key]) for key in keys if isinstance(config.get(key), int)), 0)
