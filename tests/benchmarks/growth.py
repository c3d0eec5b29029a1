"""Scaling of training with sequence length and model size: tokens per second and peak memory, as a plot.

    python -m tests.benchmarks.growth [--lengths 128,512,1024,2048,4096] [--sizes 10,30,135,360,1000]
        [--plot docs/growth.svg]

Training steps under LoRA (r 8 on q and v) of Llama-shaped models with random weights, the loss on the last quarter of
each sequence, every size and length in its own process. Lengths are measured with 135 million parameters, sizes with
512 tokens; a step has 2048 tokens, or one sequence if that is longer. tests/benchmarks/preparation.py measures how cost
grows with the number of rows.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
SHAPES = {
    # millions of parameters: hidden size, layers, heads, key and value heads, width of the feed-forward layer
    10: (192, 4, 3, 1, 512),
    30: (384, 8, 6, 2, 1024),
    135: (576, 30, 9, 3, 1536),
    360: (960, 32, 15, 5, 2560),
    1000: (1792, 26, 28, 4, 6144),
}
STEP_TOKENS = 2048


def time_steps(size: int, length: int, steps: int) -> dict[str, float]:
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipelines.modeling.attention import SHARED
    from pipelines.modeling.packing import token_losses
    from pipelines.modeling.token_sequences import TokenSequences

    hidden, layers, heads, kv_heads, width = SHAPES[size]
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=width,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    config._attn_implementation = SHARED["loop"]
    base = LlamaForCausalLM(config)
    weights = sum(weight.numel() for weight in base.parameters())
    model = get_peft_model(base, LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    count = max(1, STEP_TOKENS // length)
    rows = TokenSequences.supervised_from(
        [np.random.default_rng(seed).integers(10, 49000, length) for seed in range(count)], [length * 3 // 4] * count
    )
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        token_losses(model, rows).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"weights": weights, "speed": rows.num_tokens / statistics.median(seconds[1:]), "memory": memory}


def measure(size: int, length: int, steps: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.growth", "--single", f"{size},{length}", "--steps", str(steps)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(process.stderr[-2000:])
    return dict(json.loads(process.stdout.splitlines()[-1]))


def plot(by_length: dict[int, dict], by_size: dict[int, dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for column, (results, name) in enumerate(((by_length, "sequence length"), (by_size, "parameters (M)"))):
        x_values = [result["weights"] / 1e6 for result in results.values()] if column else list(results)
        for row, (key, label, unit) in enumerate((("speed", "tokens/s", 1), ("memory", "peak memory, GB", 1e9))):
            axis = axes[row][column]
            axis.plot(x_values, [result[key] / unit for result in results.values()], marker="o")
            axis.set(xscale="log", yscale="log" if row == 0 else "linear", xlabel=name, ylabel=label)
            axis.set_xticks(x_values, [f"{x:.0f}" for x in x_values])
            axis.xaxis.set_minor_locator(NullLocator())
            if not row:
                speeds = [result[key] for result in results.values()]
                axis.set_yticks(speeds, [f"{speed:,.0f}" for speed in speeds])
                axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3)
            if row:
                axis.set_ylim(bottom=0)
    plt.rcParams["svg.hashsalt"] = "growth"
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", default="128,512,1024,2048,4096")
    parser.add_argument("--sizes", default="10,30,135,360,1000")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--single")
    args = parser.parse_args()
    if args.single:
        size, length = map(int, args.single.split(","))
        print(json.dumps(time_steps(size, length, args.steps)))
        return
    by_length = {length: measure(135, length, args.steps) for length in map(int, args.lengths.split(","))}
    by_size = {size: measure(size, 512, args.steps) for size in map(int, args.sizes.split(","))}
    table = Table("parameters (M)", "sequence length", "tokens/s", "peak memory, GB")
    for length, result in by_length.items():
        table.add_row(
            f"{result['weights'] / 1e6:.0f}", str(length), f"{result['speed']:.0f}", f"{result['memory'] / 1e9:.2f}"
        )
    for result in by_size.values():
        table.add_row(
            f"{result['weights'] / 1e6:.0f}", "512", f"{result['speed']:.0f}", f"{result['memory'] / 1e9:.2f}"
        )
    Console().print(table)
    if args.plot:
        plot(by_length, by_size, args.plot)


if __name__ == "__main__":
    main()
