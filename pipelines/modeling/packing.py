"""Forward passes over packed token sequences: no padding, shared prefixes computed once, logits only where the loss
counts.

Sequences are concatenated into one. Attention stays within each sequence and positions restart with it, so losses and
gradients equal those of a padded batch whose labels are -100 outside of the supervised spans.

A shared prefix is computed once although each of its sequences may supervise other tokens of it. Its hidden states do
not depend on that: causal attention sees nothing that follows. A token of the prefix counts once for each sequence
that supervises it, as it does without sharing, since the position that predicts it is selected once for each.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.modeling.attention import supports_packing, supports_prefix_sharing, unused_attention_mask
from pipelines.modeling.device_copy import copy_together
from pipelines.modeling.linear_cross_entropy import linear_cross_entropy
from pipelines.modeling.memory import split_tokens
from pipelines.modeling.prefix_tree import PrefixTree, build_prefix_tree
from pipelines.modeling.token_sequences import TokenSequences, batch_by_tokens

PACK_TOKENS = 4096
"""Tokens per forward pass if no activations are kept for a backward pass."""


def token_losses(model: torch.nn.Module, sequences: TokenSequences) -> torch.Tensor:
    """The cross entropy of every supervised token in nats, sequence after sequence: fp32 [supervised tokens]."""
    return torch.cat([packed_losses(model, batch, tree) for batch, tree in _packed_batches(model, sequences)])


def supervised_logits(
    model: torch.nn.Module, sequences: TokenSequences, *, share_prefixes: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that predict the supervised tokens, sequence after sequence, and the tokens themselves.

    Returns [supervised tokens, vocabulary] in the model's dtype and int64 [supervised tokens]. Without `share_prefixes`
    every sequence is computed from its first token, so that each of its tokens has a gradient of its own.
    """
    batches = [packed_logits(model, batch, tree) for batch, tree in _packed_batches(model, sequences, share_prefixes)]
    if len(batches) == 1:
        return batches[0]  # concatenation would copy the largest tensor of a step
    logits, targets = zip(*batches, strict=True)
    return torch.cat(logits), torch.cat(targets)


def _packed_batches(
    model: torch.nn.Module, sequences: TokenSequences, share_prefixes: bool = True
) -> Iterator[tuple[TokenSequences, PrefixTree]]:
    """The forward passes for `sequences`: one for all, or one per sequence if the model does not support packing."""
    if supports_packing(model):
        share = share_prefixes and supports_prefix_sharing(model) and not has_active_dropout(model)
        yield sequences, build_prefix_tree(sequences.input_ids, share_prefixes=share)
        return
    for index in range(len(sequences)):
        sequence = sequences[index : index + 1]
        yield sequence, build_prefix_tree(sequence.input_ids)


def has_active_dropout(model: torch.nn.Module) -> bool:
    """Whether the model draws dropout masks. Every sequence must have masks of its own, also for a shared prefix."""
    if not model.training:
        return False
    probabilities = (module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))
    text_config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    return any(probabilities) or bool(getattr(text_config, "attention_dropout", 0))


def packed_losses(
    model: torch.nn.Module, sequences: TokenSequences, prefix_tree: PrefixTree, **model_kwargs: Any
) -> torch.Tensor:
    """`token_losses` of sequences whose prefix tree is built; `model_kwargs` are passed to the model."""
    lm_head = linear_lm_head(model)
    if lm_head is None:
        logits, targets = packed_logits(model, sequences, prefix_tree, **model_kwargs)
        return cross_entropy(logits, targets)
    inputs, loss_positions, targets = _model_inputs(model, sequences, prefix_tree)
    decoder = transformers_model(model).get_decoder()  # type: ignore[operator]
    hidden_states = decoder(**{**inputs, **model_kwargs}).last_hidden_state.squeeze(0)
    return linear_cross_entropy(hidden_states.index_select(0, loss_positions), lm_head, targets)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross entropy of `logits` [positions, vocabulary] and `targets` [positions] in nats: fp32 [positions].

    Computed in fp32 whatever the dtype of the logits: a sum over a vocabulary in bf16 has an error of about 1%.
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def packed_logits(
    model: torch.nn.Module, sequences: TokenSequences, prefix_tree: PrefixTree, **model_kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`supervised_logits` of sequences whose prefix tree is built; `model_kwargs` are passed to the model."""
    inputs, loss_positions, targets = _model_inputs(model, sequences, prefix_tree)
    if "logits_to_keep" in inspect.signature(transformers_model(model).forward).parameters:
        output = model(**{**inputs, **model_kwargs}, logits_to_keep=loss_positions)
        return output.logits.squeeze(0), targets
    return model(**{**inputs, **model_kwargs}).logits[0, loss_positions], targets


def _model_inputs(
    model: torch.nn.Module, sequences: TokenSequences, prefix_tree: PrefixTree
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """The model's keyword arguments, the positions whose logits are needed, and the tokens that those predict.

    Positions and targets are int64 [supervised tokens]. A position is repeated if several sequences supervise the token
    that follows it.
    """
    device = next(model.parameters()).device
    supervised = [sequences.supervised_indices(index) for index in range(len(sequences))]
    loss_positions = [prefix_tree.token_indices(index)[indices - 1] for index, indices in enumerate(supervised)]
    targets = [ids[indices] for ids, indices in zip(sequences.input_ids, supervised, strict=True)]
    arrays = (prefix_tree.input_ids, prefix_tree.position_ids, np.concatenate(loss_positions), np.concatenate(targets))
    # The loss takes targets in int64.
    input_ids, position_ids, positions, target_ids = copy_together([array.astype(np.int64) for array in arrays], device)
    inputs: dict[str, Any] = {"input_ids": input_ids[None], "position_ids": position_ids[None], "use_cache": False}
    if supports_packing(model):
        inputs |= {"prefix_tree": prefix_tree, "attention_mask": unused_attention_mask(model, input_ids)}
    return inputs, positions, target_ids


def linear_lm_head(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The output layer, if the loss may be computed from it and the last hidden states without keeping logits.

    That is so if logits are the product of the two (see `detect_linear_lm_head`) and the layer needs no gradient. None
    otherwise.
    """
    inner = transformers_model(model)
    head = inner.get_output_embeddings() if getattr(inner, "has_linear_lm_head", False) else None  # type: ignore[operator]
    if type(head) is not torch.nn.Linear:
        return None
    is_trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in head.parameters())
    return None if is_trained else head


def transformers_model(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    get_base_model = getattr(model, "get_base_model", None)
    return get_base_model() if get_base_model is not None else model


def sequence_mean_losses(
    model: torch.nn.Module, sequences: TokenSequences, batch_tokens: int = PACK_TOKENS
) -> Iterator[float]:
    """The mean loss over the supervised tokens of each sequence, in nats per token, without gradients.

    A forward pass takes up to `batch_tokens` tokens. A sequence without supervised tokens gives NaN.
    """
    splitter = split_tokens("the loss of a text")
    for indices in batch_by_tokens(sequences, batch_tokens):
        for _, losses in splitter.map(partial(sequence_mean_losses_of_batch, model), sequences.select(indices)):
            yield from losses


def sequence_mean_losses_of_batch(model: torch.nn.Module, sequences: TokenSequences) -> list[float]:
    """`sequence_mean_losses` in one forward pass."""
    with torch.no_grad():
        # Read from the device at once. The mean is in fp64, which not every device has.
        losses = token_losses(model, sequences).cpu().split(sequences.supervised_lengths)
    return [float(loss.double().mean()) for loss in losses]
