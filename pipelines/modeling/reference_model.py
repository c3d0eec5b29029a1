"""The reference model: what the job starts from, whatever training and adapter do to the model at hand."""

from __future__ import annotations

import copy

import torch

from pipelines.modeling.adapters import adapter_disabled, disabled_adapter_is_base, model_source
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.token_sequences import TokenSequences


class ReferenceModel:
    """The model as it stood when the job began.

    That is the model with its adapter switched off, where on trial rows it gives the logits of the untouched base; else the
    base loaded once more; without an adapter a frozen copy of the weights.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.frozen: torch.nn.Module | None = None
        if not hasattr(model, "disable_adapter"):
            self.frozen = copy.deepcopy(model).requires_grad_(False).eval()
        elif not disabled_adapter_is_base(model):
            base = model_source(model)
            self.frozen = (
                load_causal_lm(base.folder, frozen=True, quantization=base.quantization).requires_grad_(False).eval()
            )

    @torch.no_grad()
    def logits(self, rows: TokenSequences) -> torch.Tensor:
        """What it predicts at the supervised tokens: [rows.supervised_tokens, vocabulary]."""
        if self.frozen is not None:
            return supervised_logits(self.frozen, rows)[0]
        training = self.model.training
        self.model.eval()
        with adapter_disabled(self.model):
            logits, _ = supervised_logits(self.model, rows)
        self.model.train(training)
        return logits
