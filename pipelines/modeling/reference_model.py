"""The reference model: the model that the job starts from, for KL terms against it during training."""

from __future__ import annotations

import copy

import torch

from pipelines.modeling.adapters import adapter_disabled, disabled_adapter_is_base, model_source
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.mixed_precision import autocast, autocast_dtype
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.token_sequences import TokenSequences


class ReferenceModel:
    """The model before training (TRL's `ref_model`).

    With an adapter it is the trained model with its adapter disabled, which needs no additional memory. If the
    disabled adapter does not give back the base (see `disabled_adapter_is_base`), the base is loaded a second time.
    Without an adapter it is a frozen copy of the weights. On a GPU its linear layers are kept in half precision, in
    which autocast would compute them: the logits are the same.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.frozen: torch.nn.Module | None = None
        if not hasattr(model, "disable_adapter"):
            self.frozen = copy.deepcopy(model).requires_grad_(False).eval()
            dtype = autocast_dtype(next(model.parameters()).device)
            if dtype is not None:
                _cast_linear_layers(self.frozen, dtype)
        elif not disabled_adapter_is_base(model):
            source = model_source(model)
            base = load_causal_lm(source.folder, allow_half_precision=True, quantization=source.quantization)
            self.frozen = base.requires_grad_(False).eval()

    @torch.no_grad()
    def logits(self, sequences: TokenSequences) -> torch.Tensor:
        """The logits that predict the supervised tokens, without dropout: [supervised tokens, vocabulary]."""
        with autocast(next(self.model.parameters()).device):
            if self.frozen is not None:
                return supervised_logits(self.frozen, sequences)[0]
            was_training = self.model.training
            self.model.eval()
            try:
                with adapter_disabled(self.model):
                    return supervised_logits(self.model, sequences)[0]
            finally:  # out of memory: the step starts over, with dropout
                self.model.train(was_training)


def _cast_linear_layers(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights of linear layers in place, except for a weight that an embedding shares."""
    modules = list(model.modules())
    embeddings = {id(module.weight) for module in modules if isinstance(module, torch.nn.Embedding)}
    for module in modules:
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in embeddings:
            for parameter in module.parameters():
                parameter.data = parameter.data.to(dtype)
