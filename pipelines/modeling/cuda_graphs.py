"""Micro-batches of a training step as CUDA graphs.

On short rows a GPU waits for the host: a LoRA step of a 1.5B model launches about 5,000 kernels, which takes an H100's
host 110 ms, while the kernels take 25 ms. A CUDA graph launches all of them at once. It replays the same kernels on the
same memory, so inputs are padded to one of a few sizes and copied to fixed tensors, and gradients accumulate in fixed
tensors. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

Padding does not change the result: attention is masked (`dense_attention`), and padded positions have weight 0 in the
loss.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from pipelines.modeling.attention import SHARED, supports_packing, supports_prefix_sharing
from pipelines.modeling.attention_layout import (
    dense_mask_key,
    on_path_matrix,
    segment_indices,
    visible_tokens,
    within_window,
)
from pipelines.modeling.device_copy import copy_to_device
from pipelines.modeling.linear_cross_entropy import linear_cross_entropy
from pipelines.modeling.packing import has_active_dropout, linear_lm_head, token_losses, transformers_model
from pipelines.modeling.prefix_tree import PrefixTree, build_prefix_tree
from pipelines.modeling.token_sequences import TokenSequences

TOKEN_SIZES = (128, 256, 512, 768, 1024, 1536, 2048)
"""The sizes to which micro-batches are padded. Larger ones keep the GPU busy without a graph."""
SUPERVISED_FRACTIONS = (0.25, 0.5, 1.0)
"""The supervised tokens are padded to one of these fractions of the size."""
MAX_SEGMENTS = 256
USES_BEFORE_CAPTURE = 3
"""A size is captured at this use: a capture takes about as long as a step."""
MAX_RELATIVE_ERROR = 0.05
"""Between the gradients of the first micro-batch with and without padding, in half precision."""

Size = tuple[int, int]
"""The padded numbers of tokens and of supervised tokens."""


@dataclass(frozen=True)
class GraphInputs:
    """The inputs of one size, as tensors that stay where they are.

    `integers` holds, one after the other: input ids, positions and segments [tokens] each, then positions of the loss
    and targets [supervised tokens] each. `loss_weights` is fp32 [supervised tokens], `on_path` bool
    [MAX_SEGMENTS, MAX_SEGMENTS].
    """

    integers: torch.Tensor
    loss_weights: torch.Tensor
    on_path: torch.Tensor

    @classmethod
    def empty(cls, size: Size, device: torch.device) -> GraphInputs:
        num_tokens, num_supervised = size
        return cls(
            torch.zeros(3 * num_tokens + 2 * num_supervised, dtype=torch.int64, device=device),
            torch.zeros(num_supervised, device=device),
            torch.zeros(MAX_SEGMENTS, MAX_SEGMENTS, dtype=torch.bool, device=device),
        )

    def fill(self, sequences: TokenSequences, prefix_tree: PrefixTree, size: Size, loss_weight: float) -> None:
        """Copies a micro-batch into the tensors. Padding is a segment of its own that nothing else attends to."""
        num_tokens, num_supervised = size
        supervised = [sequences.supervised_indices(index) for index in range(len(sequences))]
        loss_positions = np.concatenate(
            [prefix_tree.token_indices(index)[indices - 1] for index, indices in enumerate(supervised)]
        )
        targets = np.concatenate([ids[indices] for ids, indices in zip(sequences.input_ids, supervised, strict=True)])
        padded = [
            _pad(prefix_tree.input_ids, num_tokens, 0),
            _pad(prefix_tree.position_ids, num_tokens, 0),
            _pad(segment_indices(prefix_tree), num_tokens, MAX_SEGMENTS - 1),
            _pad(loss_positions, num_supervised, 0),
            _pad(targets, num_supervised, 0),
        ]
        weights = _pad(np.full(len(targets), loss_weight, np.float32), num_supervised, 0.0)
        on_path = np.eye(MAX_SEGMENTS, dtype=bool)
        num_segments = len(prefix_tree.lengths)
        on_path[:num_segments, :num_segments] = on_path_matrix(prefix_tree)
        device = self.integers.device
        for static, array in zip(
            (self.integers, self.loss_weights, self.on_path),
            (np.concatenate(padded).astype(np.int64), weights, on_path),
            strict=True,
        ):
            static.copy_(copy_to_device(array, device))


def _pad(array: np.ndarray, length: int, value: float) -> np.ndarray:
    return np.pad(array, (0, length - len(array)), constant_values=value)


class MicroBatchGraphs:
    """Runs forward and backward passes of micro-batches at a few padded sizes, after some uses as CUDA graphs.

    A size computes the same before and after its capture, so that a resumed training does.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        weights: Sequence[torch.nn.Parameter],
        autocast: Callable[[], AbstractContextManager[None]],
        *,
        capture: bool = True,
    ) -> None:
        """`weights` are the trained weights; the graphs add to their gradients. Tests on a CPU cannot `capture`."""
        self.model, self.weights, self.autocast, self.capture = model, list(weights), autocast, capture
        self.gradients = [torch.zeros_like(weight) for weight in self.weights]
        self.uses: Counter[Size] = Counter()
        self.inputs: dict[Size, GraphInputs] = {}
        self.passes: dict[Size, Callable[[], torch.Tensor]] = {}
        self.pool = torch.cuda.graph_pool_handle() if capture else None
        self.num_captured = 0
        # The trainer's model is in training mode. A walk through all modules in every step would take milliseconds.
        self.is_enabled = supports_packing(model) and not has_active_dropout(model)

    def backward(self, sequences: TokenSequences, loss_weight: float) -> torch.Tensor | None:
        """Adds the gradients of Σ loss · `loss_weight` over the supervised tokens. Returns that sum, fp32 [].

        None, and nothing added, if the micro-batch must be computed without padding: it is too large, or the gradients
        would not be the same.
        """
        if not self.is_enabled or not self._is_supported():
            return None
        prefix_tree = build_prefix_tree(sequences.input_ids, share_prefixes=supports_prefix_sharing(self.model))
        size = _padded_size(len(prefix_tree.input_ids), sequences.num_supervised_tokens)
        if size is None or len(prefix_tree.lengths) >= MAX_SEGMENTS:
            return None
        if size not in self.passes:
            self.inputs[size] = GraphInputs.empty(size, self.weights[0].device)
            self.passes[size] = partial(self._run_passes, size)
            if not self.uses and not self._matches_unpadded(size, sequences, prefix_tree, loss_weight):
                self.is_enabled = False
                return None
        self.uses[size] += 1
        self._use_own_gradients()
        self.inputs[size].fill(sequences, prefix_tree, size, loss_weight)
        if self.uses[size] == USES_BEFORE_CAPTURE and self.capture:
            self._capture(size)
        return self.passes[size]().clone()

    def _is_supported(self) -> bool:
        """Whether the pass is the same every time: no hooks on weights, a frozen output layer."""
        has_hooks = any(weight._backward_hooks or weight._post_accumulate_grad_hooks for weight in self.weights)
        return not has_hooks and linear_lm_head(self.model) is not None

    def _use_own_gradients(self) -> None:
        """Makes the graphs' tensors the gradients of the weights, with the values that these have so far."""
        if all(weight.grad is None for weight in self.weights):
            torch._foreach_zero_(self.gradients)
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            if weight.grad is not None and weight.grad is not gradient:
                gradient.copy_(weight.grad)
            weight.grad = gradient

    def _run_passes(self, size: Size) -> torch.Tensor:
        """Adds the gradients of the micro-batch in the inputs of `size` and returns its loss."""
        inner = transformers_model(self.model)
        attention = inner.config._attn_implementation  # type: ignore[union-attr]
        inner.set_attn_implementation(SHARED["dense"])  # type: ignore[operator]
        try:
            loss = self._loss(self.inputs[size], size)
            loss.backward()
        finally:
            inner.set_attn_implementation(attention)  # type: ignore[operator]
        return loss.detach()

    def _capture(self, size: Size) -> None:
        """Replaces the passes of `size` by their CUDA graph. Without memory for it, they stay as they are."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                loss = self._run_passes(size)
        except RuntimeError as error:
            self.capture = False
            logging.getLogger(__name__).info(f"no CUDA graphs: {str(error).splitlines()[0]}")
            return
        self.num_captured += 1

        def replay() -> torch.Tensor:
            graph.replay()
            return loss

        self.passes[size] = replay

    def _loss(self, inputs: GraphInputs, size: Size) -> torch.Tensor:
        num_tokens, num_supervised = size
        sizes = [num_tokens] * 3 + [num_supervised] * 2
        input_ids, positions, segments, loss_positions, targets = inputs.integers.split(sizes)
        mask = visible_tokens(inputs.on_path, segments, positions)
        device = mask.device
        masks: dict[Hashable, Any] = {dense_mask_key(device, None): mask}
        inner = transformers_model(self.model)
        window = getattr(inner.config.get_text_config(), "sliding_window", None)  # type: ignore[operator, union-attr]
        if window is not None:
            masks[dense_mask_key(device, window)] = within_window(mask, positions, window)
        with self.autocast():
            decoder, head = inner.get_decoder(), linear_lm_head(self.model)  # type: ignore[operator]
            assert head is not None
            hidden_states = decoder(
                input_ids=input_ids[None],
                position_ids=positions[None],
                use_cache=False,
                prefix_tree=PrefixTree([], [], [], masks),
                attention_mask=mask[:, :, :1, :1],
            ).last_hidden_state.squeeze(0)
            losses = linear_cross_entropy(hidden_states.index_select(0, loss_positions), head, targets)
            return (losses * inputs.loss_weights).sum()

    def _matches_unpadded(
        self, size: Size, sequences: TokenSequences, prefix_tree: PrefixTree, loss_weight: float
    ) -> bool:
        """Whether the padded gradients are those of the same micro-batch without padding."""
        kept = [weight.grad for weight in self.weights]
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient
        torch._foreach_zero_(self.gradients)
        self.inputs[size].fill(sequences, prefix_tree, size, loss_weight)
        try:
            self._run_passes(size)
        except (RuntimeError, TypeError, ValueError):
            matches = False
        else:
            for weight in self.weights:
                weight.grad = None
            with self.autocast():
                loss = (token_losses(self.model, sequences) * loss_weight).sum()
            loss.backward()
            expected = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.weights]
            difference = [actual - other for actual, other in zip(self.gradients, expected, strict=True)]
            norms = [torch.nn.utils.get_total_norm(tensors) for tensors in (difference, expected)]
            matches = bool(norms[0] <= MAX_RELATIVE_ERROR * norms[1])
        for weight, own_gradient in zip(self.weights, kept, strict=True):
            weight.grad = own_gradient
        return matches


def _padded_size(num_tokens: int, num_supervised: int) -> Size | None:
    """The smallest size that holds a micro-batch; None if there is none."""
    tokens = next((size for size in TOKEN_SIZES if size >= num_tokens), None)
    if tokens is None or num_supervised == 0:
        return None
    lengths = (int(tokens * fraction) for fraction in SUPERVISED_FRACTIONS)
    supervised = next((length for length in lengths if length >= num_supervised), None)
    return None if supervised is None else (tokens, supervised)
