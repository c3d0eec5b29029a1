"""What the attention paths of a device need to know about a prefix tree, as tensors on that device.

A layout is built once per forward pass and used by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines.modeling.device_copy import copy_to_device, copy_together

if TYPE_CHECKING:
    from pipelines.modeling.prefix_tree import PrefixTree


@dataclass(frozen=True)
class VarlenLayout:
    """The arguments of variable-length attention: one query sequence per segment, one key sequence per path to it.

    Attributes:
        query_offsets: int32 [segments + 1], where the queries of each segment start.
        key_offsets: int32 [segments + 1], where the keys of each path start in the gathered keys.
        key_indices: int32 [keys], the token of each gathered key; None if no segment has ancestors, where keys need
            not be gathered.
        max_queries, max_keys: the lengths of the longest segment and of the longest path.
    """

    query_offsets: torch.Tensor
    key_offsets: torch.Tensor
    key_indices: torch.Tensor | None
    max_queries: int
    max_keys: int


def varlen_layout(prefix_tree: PrefixTree, device: torch.device) -> VarlenLayout:
    """The layout for `device`, built once per tree."""
    layout: VarlenLayout = prefix_tree.cached(("varlen", device), lambda: _build_varlen_layout(prefix_tree, device))
    return layout


def _build_varlen_layout(prefix_tree: PrefixTree, device: torch.device) -> VarlenLayout:
    lengths = np.asarray(prefix_tree.lengths)
    path_lengths = lengths + np.asarray(prefix_tree.prefix_lengths)
    query_offsets = np.cumsum([0, *lengths], dtype=np.int32)
    if not any(prefix_tree.prefix_lengths):
        offsets = copy_to_device(query_offsets, device)
        return VarlenLayout(offsets, offsets, None, int(lengths.max()), int(lengths.max()))
    key_offsets = np.cumsum([0, *path_lengths], dtype=np.int32)
    key_indices = np.concatenate(
        [
            np.arange(query_offsets[segment], query_offsets[segment + 1], dtype=np.int32)
            for last, ancestors in enumerate(prefix_tree.ancestors)
            for segment in (*ancestors, last)
        ]
    )
    queries, keys, indices = copy_together([query_offsets, key_offsets, key_indices], device)
    return VarlenLayout(queries, keys, indices, int(lengths.max()), int(path_lengths.max()))


def dense_mask(prefix_tree: PrefixTree, device: torch.device, sliding_window: int | None) -> torch.Tensor:
    """Which tokens each token attends to, bool [1, 1, tokens, tokens]: its ancestors in the tree and itself.

    With a `sliding_window` only those less than that many positions before it. Built once per tree and window.
    """
    mask: torch.Tensor = prefix_tree.cached(
        dense_mask_key(device, sliding_window), lambda: _build_dense_mask(prefix_tree, device, sliding_window)
    )
    return mask


def dense_mask_key(device: torch.device, sliding_window: int | None) -> tuple[str, torch.device, int | None]:
    """The key of a dense mask in `PrefixTree.cached`."""
    return "dense", device, sliding_window


def _build_dense_mask(prefix_tree: PrefixTree, device: torch.device, sliding_window: int | None) -> torch.Tensor:
    on_path, segments = on_path_matrix(prefix_tree), segment_indices(prefix_tree)
    arrays = [array.astype(np.int32) for array in (on_path.reshape(-1), segments, prefix_tree.position_ids)]
    device_on_path, device_segments, positions = copy_together(arrays, device)
    mask = visible_tokens(device_on_path.view(on_path.shape).bool(), device_segments, positions)
    return mask if sliding_window is None else within_window(mask, positions, sliding_window)


def on_path_matrix(prefix_tree: PrefixTree) -> np.ndarray:
    """Bool [segments, segments]: whether the second segment is the first one or precedes it in its sequences."""
    is_on_path = np.eye(len(prefix_tree.lengths), dtype=bool)
    for segment, ancestors in enumerate(prefix_tree.ancestors):
        is_on_path[segment, list(ancestors)] = True
    return is_on_path


def segment_indices(prefix_tree: PrefixTree) -> np.ndarray:
    """The segment of each token: int64 [tokens]."""
    return np.repeat(np.arange(len(prefix_tree.lengths)), prefix_tree.lengths)


def visible_tokens(on_path: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The dense mask, bool [1, 1, tokens, tokens], of tokens in `segments` [tokens] at `positions` [tokens]."""
    visible: torch.Tensor = on_path[segments][:, segments]
    visible &= positions[:, None] >= positions[None, :]
    return visible[None, None]


def within_window(mask: torch.Tensor, positions: torch.Tensor, sliding_window: int) -> torch.Tensor:
    """The dense mask without the tokens that are `sliding_window` positions before a token, or more."""
    return mask & (positions[:, None] - positions[None, :] < sliding_window)
