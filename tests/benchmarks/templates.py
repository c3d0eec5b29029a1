"""Effect of prefix sharing: training steps over sequences with a shared prefix of 0 to 1,024 tokens.

    python -m tests.benchmarks.templates [--lengths 0,64,256,1024] [--rounds 3]

Each of 8 sequences has 64 tokens of its own after the prefix; the last 16 are supervised. The prefix is computed once
per sequence and once per batch, in turn, in one process. LoRA with r 8 on q and v, no dropout.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table

from pipelines.modeling.attention import PACKED, SHARED
from pipelines.modeling.base_models import ensure_base_model
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import token_losses
from pipelines.modeling.token_sequences import TokenSequences
from tests.benchmarks.throughput import LORA, RATE

ROWS, OWN, ANSWER = 8, 64, 16


def sequences_after_prefix(prefix: int, vocabulary: int) -> TokenSequences:
    rng = np.random.default_rng(prefix)
    shared = rng.integers(vocabulary, size=prefix)
    tokens = [np.concatenate([shared, rng.integers(vocabulary, size=OWN)]).astype(np.int32) for _ in range(ROWS)]
    return TokenSequences.supervised_from(tokens, [prefix + OWN - ANSWER] * ROWS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", default="0,64,256,1024")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model = load_causal_lm(ensure_base_model("smollm2-135m-instruct"), allow_half_precision=True)
    tuned = get_peft_model(model, LoraConfig(**LORA)).train()
    optimizer = torch.optim.AdamW([weight for weight in tuned.parameters() if weight.requires_grad], lr=RATE)
    table = Table("prefix tokens", "without prefix sharing, s/step", "with, s/step", "speedup")
    for length in map(int, args.lengths.split(",")):
        rows, seconds = (
            sequences_after_prefix(length, model.config.vocab_size),
            {PACKED["loop"]: [], SHARED["loop"]: []},
        )
        for _ in range(args.rounds):
            for attention, times in seconds.items():
                model.set_attn_implementation(attention)
                started = time.perf_counter()
                token_losses(tuned, rows).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                times.append(time.perf_counter() - started)
        packed, shared = (statistics.median(times) for times in seconds.values())
        table.add_row(f"{length:,}", f"{packed:.2f}", f"{shared:.2f}", f"{packed / shared:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
