"""Rows laid end to end through the model: no padding, what they have in common read once, and the vocabulary projection only
where the loss counts.

The numbers are those of a padded batch: attention stays within each row and positions restart with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.modeling.attention import supports_packing, supports_prefix_sharing
from pipelines.modeling.linear_cross_entropy import linear_cross_entropy
from pipelines.modeling.prefix_tree import PrefixTree, build_prefix_tree
from pipelines.modeling.token_sequences import TokenSequences, batch_by_tokens

PACK_TOKENS = 4096
"""Tokens that go through the model at once where nothing is kept for a backward pass."""


def token_losses(model: torch.nn.Module, rows: TokenSequences) -> torch.Tensor:
    """Cross entropy in nats of every supervised token, row after row: fp32 [rows.supervised_tokens]."""
    return torch.cat([packed_losses(model, part, prefix_tree) for part, prefix_tree in _forward_batches(model, rows)])


def supervised_logits(
    model: torch.nn.Module, rows: TokenSequences, *, share_prefixes: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits that predict each supervised token, row after row, and those tokens:
    [rows.supervised_tokens, vocabulary] and int64 [rows.supervised_tokens].

    Without `share` each row is read by itself from its first token on, for who wants the gradient at each of its tokens.
    """
    passes = [
        packed_logits(model, part, prefix_tree) for part, prefix_tree in _forward_batches(model, rows, share_prefixes)
    ]
    if len(passes) == 1:
        return passes[0]  # joining would copy what is the largest thing of a step
    logits, targets = zip(*passes, strict=True)
    return torch.cat(logits), torch.cat(targets)


def _forward_batches(
    model: torch.nn.Module, rows: TokenSequences, share_prefixes: bool = True
) -> Iterator[tuple[TokenSequences, PrefixTree]]:
    """The passes that the model takes for `rows`: one, or one a row."""
    if supports_packing(model):
        yield (
            rows,
            build_prefix_tree(
                rows.input_ids,
                share_prefixes=share_prefixes and supports_prefix_sharing(model) and not _has_active_dropout(model),
            ),
        )
    else:
        yield from ((rows[n : n + 1], build_prefix_tree(rows.input_ids[n : n + 1])) for n in range(len(rows)))


def _has_active_dropout(model: torch.nn.Module) -> bool:
    """Whether the model now draws random numbers: each row has its own."""
    if not model.training:
        return False
    layers = (module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))
    return any(layers) or bool(getattr(model.config.get_text_config(), "attention_dropout", 0))  # type: ignore[operator, union-attr]


def packed_losses(model: torch.nn.Module, rows: TokenSequences, prefix_tree: PrefixTree, **more: Any) -> torch.Tensor:
    """As `token_losses`, of rows laid out; `more` goes to the model."""
    head = linear_lm_head(model)
    if head is None:
        logits, targets = packed_logits(model, rows, prefix_tree, **more)
        return F.cross_entropy(logits, targets, reduction="none").float()
    inputs, places, targets = _inputs(model, rows, prefix_tree)
    hidden = transformers_model(model).get_decoder()(**{**inputs, **more}).last_hidden_state  # type: ignore[operator]
    return linear_cross_entropy(hidden.squeeze(0).index_select(0, places), head, targets)


def packed_logits(
    model: torch.nn.Module, rows: TokenSequences, prefix_tree: PrefixTree, **more: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `supervised_logits`, of rows laid out; `more` goes to the model."""
    inputs, places, targets = _inputs(model, rows, prefix_tree)
    if "logits_to_keep" in inspect.signature(transformers_model(model).forward).parameters:
        return model(**{**inputs, **more}, logits_to_keep=places).logits.squeeze(0), targets
    return model(**{**inputs, **more}).logits[0, places], targets


def _inputs(
    model: torch.nn.Module, rows: TokenSequences, prefix_tree: PrefixTree
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """What the model is given, the places whose logits count, each predicting the next token, and those tokens."""
    device = next(model.parameters()).device
    # As int64, which is what torch looks tokens up by.
    supervised = [rows.supervised_indices(row) for row in range(len(rows))]
    # A token of a shared prefix is predicted once for each sequence that supervises it: its index is repeated here.
    wanted = [prefix_tree.token_indices(row)[indices - 1] for row, indices in enumerate(supervised)]
    following = [ids[indices] for ids, indices in zip(rows.input_ids, supervised, strict=True)]
    tokens, positions, places, targets = (
        torch.from_numpy(numbers.astype(np.int64)).to(device)
        for numbers in (
            prefix_tree.input_ids,
            prefix_tree.position_ids,
            np.concatenate(wanted),
            np.concatenate(following),
        )
    )
    inputs = {"input_ids": tokens[None], "position_ids": positions[None], "use_cache": False}
    return inputs | ({"prefix_tree": prefix_tree} if supports_packing(model) else {}), places, targets


def linear_lm_head(model: torch.nn.Module) -> torch.nn.Linear | None:
    """The output layer where logits are its product with the decoder's last hidden states and nothing more (which
    `detect_linear_lm_head` finds out), and where no gradient of its own is asked for."""
    inner = transformers_model(model)
    head = inner.get_output_embeddings() if getattr(inner, "has_linear_lm_head", False) else None  # type: ignore[operator]
    trained = torch.is_grad_enabled() and head is not None and any(weight.requires_grad for weight in head.parameters())
    return head if type(head) is torch.nn.Linear and not trained else None


def transformers_model(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model


def sequence_losses(model: torch.nn.Module, rows: TokenSequences, batch_tokens: int = PACK_TOKENS) -> Iterator[float]:
    """Mean loss of each row's supervised tokens, in nats per token; packs of about `batch_tokens` tokens."""
    for numbers in batch_by_tokens(rows, batch_tokens):
        yield from mean_loss_per_sequence(model, rows.select(numbers))


def mean_loss_per_sequence(model: torch.nn.Module, rows: TokenSequences) -> list[float]:
    """Mean loss of each row's supervised tokens, all in one pass."""
    with torch.no_grad():
        losses = token_losses(model, rows).split(rows.supervised_lengths)
    return [float(loss.double().mean()) for loss in losses]
