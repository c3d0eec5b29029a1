"""The model folder of a finished training."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.console.activity import track_activity
from pipelines.forgetting.context import ForgettingContext
from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.adapters import trainable_parameters
from pipelines.modeling.attention import attention_path
from pipelines.modeling.base_models import load_tokenizer
from pipelines.modeling.hardware import peak_memory
from pipelines.modeling.memory import release_cached_memory
from pipelines.modeling.packing import transformers_model
from pipelines.modeling.quantization import num_parameters
from pipelines.storage.files import write_json
from pipelines.training.ludwig_model import FineTunedLLM
from pipelines.training.model_card import write_model_card


def export_model(
    llm: FineTunedLLM, context: ForgettingContext, strategies: Sequence[Strategy], history: dict[str, Any], folder: Path
) -> None:
    """Writes the tuned model to `folder`, which must not exist: final weights, tokenizer, model card and history.

    An export to another format belongs at the end: strategies such as `interpolate` change the weights before it.
    """
    with track_activity("saving the model"):
        _save_trained_model(llm, context, history, folder)
    if any(type(strategy).transform_weights is not Strategy.transform_weights for strategy in strategies):
        _move_off_gpu(llm)
    for strategy in strategies:
        history |= strategy.transform_weights(folder)
    write_json(folder / "training.json", history)


def _move_off_gpu(llm: FineTunedLLM) -> None:
    """Makes room on the GPU for models that a strategy loads. A quantized model, which is small, stays there."""
    if next(llm.model.parameters()).device.type != "cpu" and not getattr(llm.model, "is_quantized", False):
        llm.model.to("cpu")
        release_cached_memory()


def _save_trained_model(llm: FineTunedLLM, context: ForgettingContext, history: dict[str, Any], folder: Path) -> None:
    """Moves the weights that Ludwig has saved to `folder` and adds tokenizer and model card.

    Extends `history` with the losses of the probe batch, which identify the model when it is loaded, the numbers of
    parameters, and the peak memory.
    """
    shutil.move(context.run.path("training", "model", "model_weights"), folder)
    tokenizer = load_tokenizer(context.starting_model_folder)
    if context.job.template_source is not None:
        tokenizer.chat_template = context.job.template_source
    tokenizer.save_pretrained(folder)
    write_model_card(folder, context.job, context.starting_model_folder, context.content_fingerprint)
    if not llm.starts_at_base and (adapter := context.job.adapter):
        history.setdefault("notes", []).append(
            f"adapter {adapter['type']}: its random initial weights change the model, so training did not start at the "
            "base"
        )
    history["probe_losses"] = llm.probe_losses
    history["parameters"] = num_parameters(llm.model.parameters())
    history["trainable_parameters"] = num_parameters(trainable_parameters(llm.model))
    history["peak_memory_bytes"] = peak_memory()
    history["attention"] = attention_path(transformers_model(llm.model))
