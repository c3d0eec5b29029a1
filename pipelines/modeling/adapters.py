"""PEFT adapters: attaching, disabling, saving and merging them, each checked against the base model's logits.

Some of PEFT's types and options rewrite the base's weights when they are attached (PiSSA, OLoRA), train weights that
remain when the adapter is disabled (biases), or share one matrix between two modules of which only one is adapted (a
tied output layer). Whether an operation is exact is therefore measured: logits of the probe batch are compared.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipelines.errors import ConfigError, ModelError, Problem, RunError
from pipelines.modeling.base_models import TRAINING_FILE
from pipelines.modeling.equivalence import is_fp32, outputs_match, probe_logits, probe_losses
from pipelines.modeling.fused_lora import fuse_lora_layers
from pipelines.modeling.memory import is_out_of_memory
from pipelines.modeling.model_folder import reject_custom_code
from pipelines.modeling.module_names import (
    Modules,
    freeze_regex_message,
    missing_targets_message,
    name_problems,
    weight_shapes,
)
from pipelines.modeling.packing import transformers_model
from pipelines.modeling.safetensors_header import read_header

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SUBTRACTING_INITS = ("pissa", "olora")
"""Values of `init_lora_weights` that subtract the adapter's initial product from the base's weights."""
_PERTURBATION = 0.1
"""How far `disabled_adapter_is_base` moves trained weights, absolutely and relative to their values."""
_NOT_MERGEABLE = "start this job from the base model, or train the earlier one with adapter: {type: lora}"


@dataclass(frozen=True, eq=False)
class ModelSource:
    """The folder and the quantization that a model was loaded with, and its logits on the probe batch at that time."""

    folder: Path
    quantization: Mapping[str, Any] | None
    logits: torch.Tensor


def model_source(model: torch.nn.Module) -> ModelSource:
    """The source that `load_causal_lm` recorded on the model, with or without an adapter around it."""
    source: ModelSource = transformers_model(model).model_source  # type: ignore[assignment]
    return source


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that training updates, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# --- attaching ---------------------------------------------------------------------------------------


def raise_on_weight_mismatch(
    subject: str, missing: Collection[str], unexpected: Collection[str], mismatched: Collection[str]
) -> None:
    """Raises ModelError, one line that starts with `subject`, unless all three collections of names are empty."""
    problems = [
        f"{problem}: {', '.join(sorted(names)[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for problem, names in (
            ("weights are missing", missing),
            ("weights have no use in this architecture", unexpected),
            ("weights have another shape", mismatched),
        )
        if names
    ]
    if problems:
        raise ModelError(
            f"{subject}: {'; '.join(problems)}. Its files do not belong together; download or save them again"
        )


def attach_adapter(model: torch.nn.Module, folder: Path) -> PeftModel:
    """The model with the adapter in `folder`, in evaluation mode.

    Raises ModelError if the adapter's weights are missing, truncated, incomplete or do not fit the model.
    """
    reject_custom_code(folder)
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise ModelError(f"adapter {str(folder)!r} has no {path.name}; train it again, or copy the whole folder")
    saved = set(read_header(path))
    try:
        adapted = PeftModel.from_pretrained(model, folder, trust_remote_code=False)
    except Exception as error:  # shapes that do not fit, a config of another version of PEFT
        if is_out_of_memory(error):
            raise
        lines = (line.strip() for line in reversed(str(error).splitlines()))
        reason = next((line for line in lines if line), type(error).__name__)[:200]
        raise ModelError(f"adapter {str(folder)!r} does not fit this base model ({reason})") from error
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    unexpected = saved - expected - set(adapted.state_dict())
    raise_on_weight_mismatch(f"adapter {str(folder)!r}", expected - saved, unexpected, ())
    optimize_adapter(adapted)
    return adapted.eval()


def optimize_adapter(model: torch.nn.Module) -> None:
    """Fuses the LoRA layers of a model on a GPU. On a CPU, PEFT's own are as fast."""
    if next(model.parameters()).device.type == "cuda":
        fuse_lora_layers(model)


def check_adapter_names(model: torch.nn.Module, adapter: Any) -> None:
    """Raises ConfigError for names in the section `adapter` that match no module of the loaded model."""
    if problems := name_problems(adapter.model_dump(), model_modules(model)):
        raise ConfigError([Problem(message) for _, message in problems])


def model_modules(model: torch.nn.Module) -> Modules:
    """The modules of a loaded model."""
    return Modules({name: list(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)})


@contextlib.contextmanager
def peft_errors_as_config_error(model: torch.nn.Module, adapter: Any) -> Iterator[None]:
    """Turns an exception of PEFT while it attaches `adapter` into a ConfigError of one line."""
    try:
        yield
    except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        if not getattr(adapter, "target_modules", None) and "target_modules" in str(error):
            modules, model_type = model_modules(transformers_model(model)), str(model.config.model_type)  # type: ignore[union-attr]
            raise ConfigError(missing_targets_message(adapter.type, model_type, modules)) from None
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ConfigError(f"adapter: PEFT cannot attach {adapter.type} to this model: {reason}") from None


def check_freeze_regex(model: torch.nn.Module, regex: str | None) -> None:
    """Raises ConfigError for a `layers_to_freeze_regex` that freezes none or all of the trainable parameters."""
    if regex is None:
        return
    names = [name for name, _ in model.named_parameters()]
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if message := freeze_regex_message(regex, trainable, names):
        raise ConfigError(message)


# --- disabling ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def adapter_disabled(model: torch.nn.Module) -> Iterator[None]:
    """Disables the adapter, and keeps what requires gradients: PEFT would unfreeze frozen parameters of the adapter."""
    requires_grad = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():  # type: ignore[operator]
            yield
    finally:
        for parameter, is_trainable in requires_grad:
            parameter.requires_grad_(is_trainable)


@torch.no_grad()
def disabled_adapter_is_base(model: torch.nn.Module) -> bool:
    """Whether the model with its adapter disabled is the base model, also after training has moved the trained weights.

    It is measured once, with perturbed weights and before weights are sharded, and recorded on the model.
    """
    recorded = getattr(model, "disabled_adapter_is_base", None)
    if recorded is None:
        original = [(parameter, parameter.detach().clone()) for parameter in trainable_parameters(model)]
        for parameter, value in original:
            parameter.add_(_PERTURBATION + _PERTURBATION * value.abs())
        try:
            with adapter_disabled(model):
                logits = probe_logits(model)
        finally:
            for parameter, value in original:
                parameter.copy_(value)
        recorded = outputs_match(logits, model_source(model).logits, is_fp32(transformers_model(model)))
        model.disabled_adapter_is_base = recorded  # type: ignore[assignment]
    return bool(recorded)


def initial_adapter_is_base(model: torch.nn.Module) -> bool:
    """Whether the model with its newly initialized adapter is the base model."""
    return outputs_match(probe_logits(model), model_source(model).logits, is_fp32(transformers_model(model)))


# --- saving ------------------------------------------------------------------------------------------


def initial_adapter_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a new adapter's matrices whose product was subtracted from the base's weights (PiSSA, OLoRA).

    The keys are the names of the matrices in an adapter's file. Empty for other initializations.
    """
    config = model.peft_config["default"]  # type: ignore[index]
    if getattr(config, "init_lora_weights", None) not in SUBTRACTING_INITS:
        return {}
    return {
        name.replace(".default", ""): weight.detach().cpu().clone()
        for name, weight in model.named_parameters()
        if "lora_A." in name or "lora_B." in name or "lora_embedding_" in name
    }


def save_adapter(model: torch.nn.Module, folder: Path, initial: Mapping[str, torch.Tensor]) -> None:
    """Saves the adapter to `folder` as one for the original base model.

    `initial`: the `initial_adapter_weights` from before training.
    """
    # The base's embeddings are not part of an adapter, but PEFT adds them if it adapts them.
    model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
    if initial:
        convert_to_plain_lora(folder, initial)


def convert_to_plain_lora(folder: Path, initial: Mapping[str, torch.Tensor]) -> None:
    """Rewrites an adapter for the base minus its `initial` product as an adapter for the base.

    With W = W' + s·B₀·A₀ the tuned weights W' + s·B·A are W + s·[B, −B₀]·[A; A₀]: a LoRA of twice the rank.
    """
    weights = load_file(folder / ADAPTER_WEIGHTS)
    for name, value in initial.items():
        initial_weight = value.to(weights[name].dtype)
        if "lora_A." in name or "lora_embedding_A" in name:
            weights[name] = torch.cat([weights[name], initial_weight], dim=0)
        else:
            weights[name] = torch.cat([weights[name], -initial_weight], dim=1)
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    # The scale s is alpha / r, or alpha / √r with rsLoRA, and must not change.
    alpha_factor = math.sqrt(2) if config["use_rslora"] else 2
    config |= {"init_lora_weights": True, "r": 2 * config["r"], "lora_alpha": alpha_factor * config["lora_alpha"]}
    config["rank_pattern"] = {pattern: 2 * rank for pattern, rank in config["rank_pattern"].items()}
    config["alpha_pattern"] = {pattern: alpha_factor * alpha for pattern, alpha in config["alpha_pattern"].items()}
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def check_matches_training(model: torch.nn.Module, folder: Path) -> None:
    """Compares a loaded tuned model with the one at the end of its training, whose probe losses are in training.json.

    Raises RunError if they differ. A folder without that file, or without probe losses in it, is not checked.
    """
    path = folder / TRAINING_FILE
    recorded = json.loads(path.read_text(encoding="utf-8")).get("probe_losses") if path.is_file() else None
    if recorded is None:
        return
    if not outputs_match(probe_losses(model), torch.tensor(recorded), is_fp32(transformers_model(model))):
        raise RunError(
            f"{folder}: the loaded model has other losses than at the end of training; was it, or its base, changed?"
        )


# --- merging -----------------------------------------------------------------------------------------


def merge_adapter(model: torch.nn.Module, adapter: Path) -> torch.nn.Module:
    """The base `model` with the adapter of the folder `adapter` merged into its weights.

    If one of two tied matrices is adapted, both become separate weights. Raises RunError if the logits of the merged
    model are not those of the base with the adapter attached.
    """
    fp32 = is_fp32(model)
    if _adapts_tied_embeddings(model, adapter):
        untie_embeddings(model)
    adapted = attach_adapter(model, adapter)
    expected = probe_logits(adapted)
    merged: torch.nn.Module = adapted.merge_and_unload()
    if not outputs_match(probe_logits(merged), expected, fp32):
        raise RunError(f"{adapter}: merged into its base, this adapter gives other logits; {_NOT_MERGEABLE}")
    return merged


def check_merged(folder: Path, merged: torch.nn.Module, reloaded: torch.nn.Module) -> None:
    """Raises RunError unless the model loaded from `folder` has the logits of the merged model that was saved there."""
    if not outputs_match(probe_logits(reloaded), probe_logits(merged), is_fp32(merged)):
        raise RunError(f"{folder}: the merged model has other logits after it is saved and loaded; {_NOT_MERGEABLE}")


def _adapts_tied_embeddings(model: torch.nn.Module, adapter: Path) -> bool:
    embeddings, lm_head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if lm_head is None or embeddings.weight is not lm_head.weight:
        return False
    tied = [name for name, module in model.named_modules() if module is embeddings or module is lm_head]
    prefixes = tuple(f"base_model.model.{name}." for name in tied)
    return any(weight.startswith(prefixes) for weight in weight_shapes(adapter))


def untie_embeddings(model: torch.nn.Module) -> None:
    """Gives the output layer its own copy of the embedding matrix."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):  # type: ignore[operator, union-attr]
        config.tie_word_embeddings = False  # type: ignore[union-attr]
    model.all_tied_weights_keys = {}  # type: ignore[assignment]
