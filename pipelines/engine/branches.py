"""Several continuations of one text in one pass: the text is read once, the continuations do not see each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from pipelines.engine.packing import ATTENTION, Rows, logits_at, supervised_logits


@dataclass(frozen=True)
class Branches:
    """`prefix` and its continuations, as tokens; each of them has at least one."""

    prefix: Sequence[int]
    continuations: Sequence[Sequence[int]]

    @property
    def tokens(self) -> int:
        return len(self.prefix) + sum(map(len, self.continuations))


def continuation_losses(model: torch.nn.Module, items: Sequence[Branches], batch_tokens: int = 4096) -> Iterator[list[float]]:
    """For each item the loss of each of its continuations, summed over its tokens, in nats."""
    pack: list[Branches] = []
    for item in items:
        if pack and sum(one.tokens for one in pack) + item.tokens > batch_tokens:
            yield from _losses(model, pack)
            pack = []
        pack.append(item)
    if pack:
        yield from _losses(model, pack)


def _losses(model: torch.nn.Module, items: Sequence[Branches]) -> Iterator[list[float]]:
    packed = getattr(model.config, "_attn_implementation", None) == ATTENTION
    losses = _packed(model, items) if packed else _one_by_one(model, items)
    for item in items:
        parts = losses[: sum(map(len, item.continuations))].split([len(one) for one in item.continuations])
        losses = losses[sum(map(len, item.continuations)) :]
        yield [float(part.double().sum()) for part in parts]


@torch.no_grad()
def _one_by_one(model: torch.nn.Module, items: Sequence[Branches]) -> torch.Tensor:
    whole = [(np.asarray([*item.prefix, *one]), len(item.prefix)) for item in items for one in item.continuations]
    logits, targets = supervised_logits(model, Rows([ids for ids, _ in whole], [start for _, start in whole]))
    return F.cross_entropy(logits.float(), targets, reduction="none")


@torch.no_grad()
def _packed(model: torch.nn.Module, items: Sequence[Branches]) -> torch.Tensor:
    device = next(model.parameters()).device
    ids: list[int] = []
    positions: list[int] = []
    predicted_at: list[int] = []
    targets: list[int] = []
    masks = []
    for item in items:
        start, length = len(ids), len(item.prefix)
        ids.extend(item.prefix)
        positions.extend(range(length))
        for one in item.continuations:
            first = len(ids)
            # A continuation's first token is predicted where the prefix ends, the others within it.
            predicted_at.extend([start + length - 1, *range(first, first + len(one) - 1)])
            targets.extend(one)
            ids.extend(one)
            positions.extend(range(length, length + len(one)))
        masks.append(_mask(item, device))
    arguments: dict[str, Any] = {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
        "use_cache": False,
        "row_lengths": tuple(item.tokens for item in items),
        "row_masks": tuple(masks),
    }
    logits = logits_at(model, torch.tensor(predicted_at, device=device), **arguments)
    return F.cross_entropy(logits.float(), torch.tensor(targets, device=device), reduction="none")


def _mask(item: Branches, device: torch.device) -> torch.Tensor:
    """[1, 1, tokens, tokens]: who may look at whom; causal, and no continuation looks at another."""
    branch = torch.zeros(item.tokens, dtype=torch.long)
    start = len(item.prefix)
    for number, one in enumerate(item.continuations, start=1):
        branch[start : start + len(one)] = number
        start += len(one)
    seen = (branch[None, :] == 0) | (branch[:, None] == branch[None, :])
    return seen.tril()[None, None].to(device)
