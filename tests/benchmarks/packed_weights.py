"""Time of the linear layers of a model for one pass over some rows: torch's products, and with packed weights.

    python -m tests.benchmarks.packed_weights [--model smollm2-135m-instruct] [--rows 1,8,32,128,1024] [--rounds 7]

Both in turn in each round, medians; every linear layer of the model on random rows.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from pipelines.modeling.base_models import ensure_base_model
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packed_weights import PackedWeights, packed_bytes


def seconds(layers: list[nn.Module], inputs: dict[int, torch.Tensor]) -> float:
    started = time.perf_counter()
    for layer in layers:
        layer(inputs[layer.in_features])
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", default="1,8,32,128,1024")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    model = load_causal_lm(ensure_base_model(args.model), allow_half_precision=False).eval()
    packed = PackedWeights.pack(model)
    assert packed is not None, "this machine has no oneDNN, or too little memory"
    layers = [layer for layer, *_ in packed.layers]
    table = Table("rows", "torch", "packed", "speedup")
    for rows in map(int, args.rows.split(",")):
        inputs = {layer.in_features: torch.randn(rows, layer.in_features) for layer in layers}
        plain, fast = [], []
        for _ in range(args.rounds):
            plain.append(seconds(layers, inputs))
            with packed.in_use():
                fast.append(seconds(layers, inputs))
        before, after = statistics.median(plain), statistics.median(fast)
        table.add_row(f"{rows:,}", f"{1000 * before:.0f} ms", f"{1000 * after:.0f} ms", f"{before / after:.2f}")
    console = Console()
    console.print(table)
    console.print(f"{len(layers)} layers, {packed_bytes(model) / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()
