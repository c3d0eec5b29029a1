"""The model as Ludwig holds it, loaded the way the hardware wants it and with attention that knows rows."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from ludwig.globals import MODEL_WEIGHTS_FILE_NAME
from ludwig.models.llm import LLM
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipelines.engine.attention import ALONE, BEGINNINGS_ONCE, TOGETHER, attention_for, reads_rows_together
from pipelines.engine.packing import Rows, supervised_logits, token_losses
from pipelines.errors import ModelError
from pipelines.model_folder import refuse_code
from pipelines.runs import replace_folder
from pipelines.safetensors_header import read_header


def load_causal_lm(folder: str | Path, *, frozen: bool, quantization: Any = None) -> PreTrainedModel:
    """A causal language model from safetensors, on the GPU where there is one. Code in the folder is never run.

    `frozen` weights (under an adapter, or for completions) are bf16 on a GPU that has it; weights that are
    trained stay fp32, as everything does on a CPU. `quantization` is Ludwig's config of that name.
    """
    cuda = torch.cuda.is_available()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    arguments: dict[str, Any] = {
        "dtype": torch.bfloat16 if cuda and frozen and torch.cuda.is_bf16_supported() else torch.float32,
        "attn_implementation": attention_for(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config) if known else None,
    }
    if quantization is not None:
        arguments["quantization_config"] = quantization.to_bitsandbytes()
        arguments["device_map"] = "auto"
    model = _load_complete(Path(folder), arguments)
    if quantization is None and cuda:
        model.to("cuda")  # type: ignore[arg-type]
    model.generation_config = neutral_generation_config(model)
    settle_attention(model)
    settle_head(model)
    return model


def _load_complete(folder: Path, arguments: dict[str, Any]) -> PreTrainedModel:
    """The model with every weight from the folder. Raises ModelError where it cannot be loaded, and where a weight is missing
    (transformers would draw it at random), has another shape, or has no use in the model. What the architecture ties or
    declares as ignorable is not counted by transformers."""
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, use_safetensors=True, **arguments
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # whatever a stranger's files make the parsers and the model's constructor raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
        raise ModelError(f"model {str(folder)!r} cannot be loaded ({reason})") from error
    mismatched = [f"{name} ({list(held)}, not {list(wanted)})" for name, held, wanted in loaded["mismatched_keys"]]
    _refuse_incomplete(f"model {str(folder)!r}", loaded["missing_keys"], loaded["unexpected_keys"], mismatched)
    return model


def _refuse_incomplete(what: str, missing: Collection[str], unexpected: Collection[str], mismatched: Collection[str]) -> None:
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
        raise ModelError(f"{what}: {'; '.join(findings)}. Its files do not belong together; download or save them again")


def neutral_generation_config(model: PreTrainedModel) -> GenerationConfig:
    """Only the ids of special tokens: what else a model folder's generation_config.json or config.json sets (sampling,
    penalties, beams, no cache) would act in every later `generate` without standing in the YAML."""
    own = model.generation_config
    return GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id)


def attach_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The adapter in `folder` over the weights of `model`, switched to evaluation. Raises ModelError where its file is
    missing, cut off, or not the whole adapter of a model like this."""
    refuse_code(folder)
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():
        raise ModelError(f"adapter {str(folder)!r} holds no {weights.name}; train it again, or copy the whole folder")
    held = read_header(weights)
    try:
        attached = PeftModel.from_pretrained(model, folder, trust_remote_code=False)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # sizes that do not fit, a config of another PEFT
        reason = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)[:200]
        raise ModelError(f"adapter {str(folder)!r} does not fit this base model ({reason})") from error
    expected = set(get_peft_model_state_dict(attached, save_embedding_layers=False))
    unexpected = set(held) - expected - set(attached.state_dict())
    _refuse_incomplete(f"adapter {str(folder)!r}", expected - set(held), unexpected, ())
    return attached.eval()


@torch.no_grad()
def settle_attention(model: PreTrainedModel) -> None:
    """Leaves the model with the fastest of the three attentions that gives what its own gives to a row alone.

    Layers that carry something from token to token (convolutions, recurrent states), sinks, or positions of a model's own
    making would otherwise go wrong in silence.
    """
    if not reads_rows_together(model):
        return
    rows, training = _trial_rows(model.config.get_text_config().vocab_size), model.training
    model.eval().set_attn_implementation(ALONE)
    expected, _ = supervised_logits(model, rows)
    for name in (BEGINNINGS_ONCE, TOGETHER):
        model.set_attn_implementation(name)
        try:
            found, _ = supervised_logits(model, rows)
        except (TypeError, ValueError, RuntimeError):
            continue  # a forward pass that knows neither rows nor their positions
        if _alike(found.float(), expected.float(), _is_exact(model)):
            break
    else:
        model.set_attn_implementation(ALONE)
        logging.getLogger(__name__).warning(
            f"{type(model).__name__}: its rows are read one at a time, which is slow; read together they came out otherwise"
        )
    model.train(training)


@torch.no_grad()
def settle_head(model: PreTrainedModel) -> None:
    """Notes whether the loss may be worked out of the last hidden states (`pipelines.engine.output_loss`).

    Not where logits are scaled, capped or shifted behind the output layer.
    """
    rows, training = _trial_rows(model.config.get_text_config().vocab_size), model.training
    model.eval().has_plain_head = False  # type: ignore[assignment]
    expected = token_losses(model, rows)
    model.has_plain_head = True  # type: ignore[assignment]
    model.has_plain_head = _alike(token_losses(model, rows), expected, _is_exact(model))  # type: ignore[assignment]
    model.train(training)


def _trial_rows(vocabulary: int) -> Rows:
    """Rows of which some begin alike; tokens from the middle of the vocabulary, where none is special."""
    random = np.random.default_rng(0)
    beginning, *ends = (random.integers(vocabulary // 8, vocabulary // 2, length).astype(np.int32) for length in (8, 9, 5, 13))
    return Rows([*(np.concatenate([beginning, end]) for end in ends[:2]), ends[2]], [2, 9, 1])


def _is_exact(model: PreTrainedModel) -> bool:
    """Whether it calculates in fp32 throughout."""
    return model.dtype == torch.float32 and model.device.type == "cpu" and not getattr(model, "is_quantized", False)


def _alike(found: torch.Tensor, expected: torch.Tensor, exact: bool) -> bool:
    """But for rounding, which is a few hundredths on average where numbers are not kept in fp32 throughout."""
    apart = (found - expected).abs() / expected.std()
    return bool(apart.max() < 1e-4 if exact else apart.mean() < 0.1)


class FineTunedLLM(LLM):
    """Ludwig's LLM, but for how the base is loaded: Ludwig takes fp32 and its own choice of attention."""

    def __init__(self, config_obj: Any, *args: Any, **kwargs: Any) -> None:
        def load(config: Any, *_: Any, **__: Any) -> PreTrainedModel:
            return load_causal_lm(config.base_model, frozen=config.adapter is not None, quantization=config.quantization)

        # The constructor calls a function of its module; there is no registry for it.
        with mock.patch("ludwig.models.llm.load_pretrained_from_config", load):
            super().__init__(config_obj, *args, **kwargs)

    def save(self, save_path: str) -> None:
        """Ludwig writes its own generation settings over the model's, and transformers refuses to save the mixture.

        Into an empty folder: PEFT adds to what a save that was cut off has left.
        """
        target = Path(save_path) / MODEL_WEIGHTS_FILE_NAME
        aside = target.with_name(f"{target.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        self.model.save_pretrained(aside)
        replace_folder(aside, target)
