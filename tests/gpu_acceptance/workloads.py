"""The rows of the speed checks, and the arithmetic of a training step on them."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from typing import Any

from tests.gpu_acceptance.jobs import Pair

LETTERS = string.ascii_uppercase
"""Characters that are one token each: the tokenizer has no merges of capital letters."""
RANK = 16


@dataclass(frozen=True)
class Workload:
    """Steps of `rows` rows of about `length` tokens. Of each row, `supervised` tokens count in the loss.

    Attributes:
        shared: tokens at the beginning that all rows have in common, like an instruction.
        warmup, measured: steps before the measurement, and steps in it.
    """

    name: str
    rows: int
    length: int
    supervised: int
    shared: int
    warmup: int
    measured: int

    def pairs(self, tiny: bool) -> list[Pair]:
        """Prompts and completions of the steps and of three more, one of which is profiled. Reproducible."""
        source = random.Random(self.name)
        scale = min(1.0, 60 / self.length) if tiny else 1.0
        shared, supervised = int(self.shared * scale), max(2, int(self.supervised * scale))
        common = "".join(source.choices(LETTERS, k=shared))
        pairs = []
        for _ in range(self.rows * (self.warmup + self.measured + 3)):
            spread = int(0.3 * self.length) if self.shared else 0
            length = max(shared + supervised + 2, int(scale * self.length) + source.randint(-spread, spread))
            prompt = common + "".join(source.choices(LETTERS, k=length - shared - supervised))
            pairs.append((prompt, "".join(source.choices(LETTERS, k=supervised - 1))))  # and the end token
        return pairs


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("short", rows=16, length=60, supervised=16, shared=20, warmup=8, measured=12),
        Workload("2048", rows=8, length=2048, supervised=1024, shared=0, warmup=3, measured=5),
        Workload("4096", rows=4, length=4096, supervised=2048, shared=0, warmup=2, measured=4),
    )
}


def step_flops(config: Any, weights: int, lora_weights: int, lengths: list[int], supervised: int) -> float:
    """Floating-point operations of a training step under LoRA, per step.

    4·N·T for frozen matrices (forward, and the gradient of the input; no gradient of the weights), 6·N_lora·T, causal
    attention 6·layers·width·Σ length² (scores and values: 2·2·width·length²/2 forward and twice that backward), and
    4·vocabulary·width for each supervised position. T = Σ length: without padding; shared prefixes count for each row.
    """
    tokens = sum(lengths)
    attention = 6 * config.num_hidden_layers * config.hidden_size * sum(length**2 for length in lengths)
    head = 4 * config.vocab_size * config.hidden_size * supervised
    return float(4 * weights * tokens + 6 * lora_weights * tokens + attention + head)


def weights_of(config: Any) -> tuple[int, int]:
    """The weights in the matrices of the layers, and those of a LoRA of rank RANK on all seven of them."""
    width, mlp = config.hidden_size, config.intermediate_size
    key_width = width // config.num_attention_heads * config.num_key_value_heads
    shapes = [(width, width), (width, key_width), (width, key_width), (width, width)]
    shapes += [(width, mlp), (width, mlp), (mlp, width)]
    per_layer = sum(rows * columns for rows, columns in shapes)
    lora_per_layer = sum(RANK * (rows + columns) for rows, columns in shapes)
    return config.num_hidden_layers * per_layer, config.num_hidden_layers * lora_per_layer
