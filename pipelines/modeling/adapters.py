"""What an adapter does to its base: whether its names match, whether switched off it is the base, how it is saved and merged.

PEFT has types and options that rewrite the base's weights when they are attached (PiSSA, OLoRA), train weights that stay when
the adapter is switched off (biases), or share one matrix between two modules of which only one is adapted (a tied output
layer). None of it is taken on trust here: logits on trial rows are compared.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from pipelines.errors import ConfigError, ModelError, Problem, RunError
from pipelines.modeling.base_models import TRAINING_FILE
from pipelines.modeling.equivalence import allclose, is_fp32, probe_logits, probe_losses
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

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SUBTRACTING_INITS = ("pissa", "olora")
"""Values of init_lora_weights that take a part out of the base's weights and train it."""
_MOVE = 0.1


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A model as its folder has it: where it came from, and its logits on the trial rows. `load_causal_lm` notes it."""

    folder: Path
    quantization: Any
    logits: torch.Tensor


def model_source(model: torch.nn.Module) -> ModelSource:
    """What `load_causal_lm` has noted on the model, inside or outside of an adapter."""
    noted: ModelSource = transformers_model(model).model_source  # type: ignore[assignment]
    return noted


# --- attaching ---------------------------------------------------------------------------------------


def raise_on_weight_mismatch(
    what: str, missing: Collection[str], unexpected: Collection[str], mismatched: Collection[str]
) -> None:
    findings = [
        f"{problem}: {', '.join(sorted(names)[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for problem, names in (
            ("weights are missing", missing),
            ("weights have no use in this architecture", unexpected),
            ("weights have another shape", mismatched),
        )
        if names
    ]
    if findings:
        raise ModelError(
            f"{what}: {'; '.join(findings)}. Its files do not belong together; download or save them again"
        )


def attach_adapter(model: torch.nn.Module, folder: Path) -> PeftModel:
    """The adapter in `folder` over the weights of `model`, switched to evaluation. Raises ModelError where its file is
    missing, cut off, or not the whole adapter of a model like this."""
    reject_custom_code(folder)
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"adapter {str(folder)!r} holds no {weights.name}; train it again, or copy the whole folder")
    held = read_header(weights)
    try:
        attached = PeftModel.from_pretrained(model, folder, trust_remote_code=False)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # sizes that do not fit, a config of another PEFT
        reason = next(
            (line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__
        )[:200]
        raise ModelError(f"adapter {str(folder)!r} does not fit this base model ({reason})") from error
    expected = set(get_peft_model_state_dict(attached, save_embedding_layers=False))
    unexpected = set(held) - expected - set(attached.state_dict())
    raise_on_weight_mismatch(f"adapter {str(folder)!r}", expected - set(held), unexpected, ())
    return attached.eval()


def check_adapter_names(model: torch.nn.Module, adapter: Any) -> None:
    """Raises ConfigError for names in the section `adapter` that the loaded model does not have."""
    modules = model_modules(model)
    if found := name_problems(adapter.model_dump(), modules):
        raise ConfigError([Problem(message) for _, message in found])


def model_modules(model: torch.nn.Module) -> Modules:
    return Modules({name: list(weight.shape) for name, weight in model.named_parameters(remove_duplicate=False)})


@contextlib.contextmanager
def peft_errors_as_config_error(model: torch.nn.Module, adapter: Any) -> Iterator[None]:
    """A ConfigError of one line where PEFT cannot adapt the model as asked."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, KeyError, NotImplementedError, AssertionError, RuntimeError) as error:
        modules = model_modules(transformers_model(model))
        if not getattr(adapter, "target_modules", None) and "target_modules" in str(error):
            raise ConfigError(missing_targets_message(adapter.type, str(model.config.model_type), modules)) from None  # type: ignore[union-attr]
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ConfigError(f"adapter: PEFT cannot attach {adapter.type} to this model: {reason}") from None


def check_freeze_regex(model: torch.nn.Module, regex: str | None) -> None:
    """Raises ConfigError for a `layers_to_freeze_regex` that freezes nothing, or everything, of what would be trained."""
    if regex is None:
        return
    names = [name for name, _ in model.named_parameters()]
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    if message := freeze_regex_message(regex, trained, names):
        raise ConfigError(message)


# --- switched off ------------------------------------------------------------------------------------


@contextlib.contextmanager
def adapter_disabled(model: torch.nn.Module) -> Iterator[None]:
    """The model without its adapter. What is trained stays so: PEFT would thaw frozen weights when it switches back on."""
    before = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        with model.disable_adapter():  # type: ignore[operator]
            yield
    finally:
        for weight, trained in before:
            weight.requires_grad_(trained)


@torch.no_grad()
def disabled_adapter_is_base(model: torch.nn.Module) -> bool:
    """Whether the model without its adapter is the untouched base, and stays it when what is trained has moved. Found out
    once, before a base is shared out over workers, and noted on the model."""
    noted = getattr(model, "disabled_adapter_is_base", None)
    if noted is None:
        kept = [(weight, weight.detach().clone()) for weight in trainable_parameters(model)]
        for weight, value in kept:
            weight.add_(_MOVE + _MOVE * value.abs())
        try:
            with adapter_disabled(model):
                found = probe_logits(model)
        finally:
            for weight, value in kept:
                weight.copy_(value)
        noted = allclose(found, model_source(model).logits, is_fp32(transformers_model(model)))
        model.disabled_adapter_is_base = noted  # type: ignore[assignment]
    return bool(noted)


def initial_adapter_is_base(model: torch.nn.Module) -> bool:
    """Whether the model with its new adapter is the untouched base."""
    return allclose(probe_logits(model), model_source(model).logits, is_fp32(transformers_model(model)))


# --- saving ------------------------------------------------------------------------------------------


def subtracted_init(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of a new adapter that takes a part out of the base's weights: copies of its matrices, whose product is that part, by
    their names in a file of PEFT. Empty for any other."""
    config = model.peft_config["default"]  # type: ignore[index]
    if getattr(config, "init_lora_weights", None) not in SUBTRACTING_INITS:
        return {}
    return {
        name.replace(".default", ""): weight.detach().cpu().clone()
        for name, weight in model.named_parameters()
        if "lora_A." in name or "lora_B." in name or "lora_embedding_" in name
    }


def save_adapter(model: torch.nn.Module, folder: Path, initial: Mapping[str, torch.Tensor]) -> None:
    """Writes the adapter into `folder`, as one for the untouched base. `initial`: what `subtracted_init` gave at its start."""
    # The base's embeddings are no part of an adapter, though PEFT adds them where it adapts them.
    model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
    if initial:
        convert_to_plain_lora(folder, initial)


def convert_to_plain_lora(folder: Path, initial: Mapping[str, torch.Tensor]) -> None:
    """Rewrites the adapter in `folder`, which holds for the base less its `initial` product, as one for the base itself.

    With W = W' + s·B₀·A₀, the tuned W' + s·B·A is W + s·[B, −B₀]·[A; A₀]: a LoRA of twice the rank.
    """
    weights, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name, value in initial.items():
        if "lora_A." in name or "lora_embedding_A" in name:
            weights[name] = torch.cat([weights[name], value.to(weights[name].dtype)], dim=0)
        else:
            weights[name] = torch.cat([weights[name], -value.to(weights[name].dtype)], dim=1)
    # s is alpha / r, or alpha / √r, and stays as it is.
    growth = math.sqrt(2) if config["use_rslora"] else 2
    config |= {"init_lora_weights": True, "r": 2 * config["r"], "lora_alpha": growth * config["lora_alpha"]}
    config["rank_pattern"] = {key: 2 * rank for key, rank in config["rank_pattern"].items()}
    config["alpha_pattern"] = {key: growth * alpha for key, alpha in config["alpha_pattern"].items()}
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def check_saved(model: torch.nn.Module, folder: Path) -> None:
    """Raises RunError where the model loaded from `folder` is not the one that training left: the loss of each token of the
    trial rows was noted then in training.json."""
    path = folder / TRAINING_FILE
    noted = json.loads(path.read_text(encoding="utf-8")).get("probe_losses") if path.is_file() else None
    if noted is not None and not allclose(probe_losses(model), torch.tensor(noted), is_fp32(transformers_model(model))):
        raise RunError(
            f"{folder}: loaded, it gives other losses than at the end of training; were it or its base changed?"
        )


# --- merging -----------------------------------------------------------------------------------------


def merge_adapter(model: torch.nn.Module, adapter: Path) -> torch.nn.Module:
    """The base with the adapter of the folder `adapter` in its weights. Raises RunError where the logits are not those of
    the base with the adapter beside it.

    Where one of two tied matrices is adapted, both become weights of their own.
    """
    exact = is_fp32(model)
    if _adapts_tied(model, adapter):
        untie_embeddings(model)
    beside = attach_adapter(model, adapter)
    expected = probe_logits(beside)
    whole: torch.nn.Module = beside.merge_and_unload()
    if not allclose(probe_logits(whole), expected, exact):
        raise RunError(
            f"{adapter}: merged into its base, this adapter gives other logits than beside it; {_NOT_MERGED}"
        )
    return whole


_NOT_MERGED = "start this job from the base, or train the earlier one with adapter: {type: lora}"


def check_merged(folder: Path, model: torch.nn.Module, reloaded: torch.nn.Module) -> None:
    """Raises RunError unless what was saved in `folder` is the merged model."""
    if not allclose(probe_logits(reloaded), probe_logits(model), is_fp32(model)):
        raise RunError(f"{folder}: the merged model, saved and loaded, gives other logits; {_NOT_MERGED}")


def _adapts_tied(model: torch.nn.Module, adapter: Path) -> bool:
    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if outside is None or inside.weight is not outside.weight:
        return False
    names = [
        f"base_model.model.{name}." for name, module in model.named_modules() if module is inside or module is outside
    ]
    return any(weight.startswith(tuple(names)) for weight in weight_shapes(adapter))


def untie_embeddings(model: torch.nn.Module) -> None:
    """The output layer gets a copy of the embedding's matrix, to change by itself."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):  # type: ignore[operator, union-attr]
        config.tie_word_embeddings = False  # type: ignore[union-attr]
    model.all_tied_weights_keys = {}  # type: ignore[assignment]


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The weights that training moves, in the model's order."""
    return [weight for weight in model.parameters() if weight.requires_grad]
