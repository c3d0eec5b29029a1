"""What a long instruction costs: training steps over rows that begin with the same 0 to 1,024 tokens.

    python -m tests.benchmarks.templates [--lengths 0,64,256,1024] [--rounds 3]

Each of 8 rows has 64 tokens of its own behind the instruction, the loss on the last 16. Both ways run in turn in one
process: the instruction read once for all rows, and read in each. LoRA, r 8 on q and v, no dropout.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table

from pipelines.modeling.attention import PACKED, SHARED_PREFIX
from pipelines.modeling.base_models import find_base_model
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import token_losses
from pipelines.modeling.token_sequences import TokenSequences
from tests.benchmarks.throughput import LORA, RATE

ROWS, OWN, ANSWER = 8, 64, 16


def rows_behind(instruction: int, vocabulary: int) -> TokenSequences:
    random = np.random.default_rng(instruction)
    shared = random.integers(vocabulary, size=instruction)
    tokens = [np.concatenate([shared, random.integers(vocabulary, size=OWN)]).astype(np.int32) for _ in range(ROWS)]
    return TokenSequences.from_completion_starts(tokens, [instruction + OWN - ANSWER] * ROWS)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", default="0,64,256,1024")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    model = load_causal_lm(find_base_model("smollm2-135m-instruct"), frozen=True)
    tuned = get_peft_model(model, LoraConfig(**LORA)).train()
    optimizer = torch.optim.AdamW([weight for weight in tuned.parameters() if weight.requires_grad], lr=RATE)
    table = Table("tokens of the instruction", "read in each row, s/step", "read once, s/step", "faster by")
    for length in map(int, given.lengths.split(",")):
        rows, seconds = rows_behind(length, model.config.vocab_size), {PACKED: [], SHARED_PREFIX: []}
        for _ in range(given.rounds):
            for attention, times in seconds.items():
                model.set_attn_implementation(attention)
                started = time.perf_counter()
                token_losses(tuned, rows).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                times.append(time.perf_counter() - started)
        each, once = (statistics.median(times) for times in seconds.values())
        table.add_row(f"{length:,}", f"{each:.2f}", f"{once:.2f}", f"{each / once:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
