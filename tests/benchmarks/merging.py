"""How often greedy completions change when an adapter is merged into bf16 weights, against the rounding of bf16 itself.

    python -m tests.benchmarks.merging BASE ADAPTER [PROMPTS] [TOKENS]

BASE and ADAPTER are folders. Prints, for pairs of ways to compute the tuned model, the share of equal completions and
the number of tokens per first difference. The adapter is merged also if the trial rejects it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

from pipelines.data.conversation import Conversation
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.slot_decoding import decode_greedy
from pipelines.modeling import merged_adapter
from pipelines.modeling.equivalence import probe_logits
from pipelines.modeling.fused_lora import fuse_lora_layers
from pipelines.modeling.merged_adapter import logits_agree
from pipelines.modeling.token_sequences import TokenSequences
from tests.benchmarks.completions import load_prompts


def in_bf16(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with the base's weights in bf16 and the adapter's in fp32, as on a GPU."""
    rounded = copy.deepcopy(model)
    for name, tensor in [*rounded.named_parameters(), *rounded.named_buffers()]:
        if "lora_" not in name and "inv_freq" not in name:
            tensor.data = tensor.data.bfloat16()
    fuse_lora_layers(rounded)
    return rounded


def compare(name: str, first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> None:
    same, differences, tokens = 0, 0, 0
    for a, b in zip(first, second, strict=True):
        common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        same += list(a) == list(b)
        differences += list(a) != list(b)
        tokens += common
    rate = "none" if not differences else f"one in {tokens / differences:.0f} tokens"
    print(f"{name}: {same} of {len(first)} completions equal; first differences: {rate}", flush=True)


def main() -> None:
    base, adapter = Path(sys.argv[1]), Path(sys.argv[2])
    num_prompts, num_tokens = (int(value) for value in (*sys.argv[3:], "60", "48")[:2])
    loaded = LoadedModel.from_folder(base).with_tuned_model(adapter)
    conversations = [Conversation.single_turn(prompt) for prompt in load_prompts(num_prompts)]
    encoded = loaded.prompt_format.encode_conversations(conversations)
    prompts = [np.asarray(prompt.prompt_ids) for prompt in encoded]
    sequences = TokenSequences.supervised_from(prompts, [len(prompt) for prompt in prompts])

    def completions(model: torch.nn.Module, label: str) -> list[list[int]]:
        with tqdm(total=len(prompts), desc=label, file=sys.stderr) as bar:
            limits = [num_tokens] * len(prompts)
            return decode_greedy(model, sequences, limits, loaded.prompt_format.stop_ids, False, bar.update)[0]

    exact = completions(loaded.model, "fp32")
    model = in_bf16(loaded.model)
    unmerged, logits = completions(model, "bf16"), probe_logits(model)
    is_accepted = []

    def accept(*args: Any) -> bool:
        is_accepted.append(logits_agree(*args[:3], strict=True))
        return True

    with mock.patch.object(merged_adapter, "logits_agree", accept), merged_adapter.adapter_merged(model, merge=True):
        merged, merged_logits = completions(model, "bf16, merged"), probe_logits(model)
    fp32_logits = probe_logits(loaded.model)
    for label, actual, expected in (
        ("bf16 against fp32", logits, fp32_logits),
        ("bf16 merged against fp32", merged_logits, fp32_logits),
        ("bf16 merged against bf16", merged_logits, logits),
    ):
        error = (actual - expected).abs() / expected.std()
        agreement = (actual.argmax(-1) == expected.argmax(-1)).float().mean()
        print(f"{label}: mean error of logits {error.mean():.4f} standard deviations, same argmax {agreement:.0%}")
    print(f"accepted by the trial: {is_accepted[0]}")
    compare("bf16 against fp32", unmerged, exact)
    compare("bf16 merged against fp32", merged, exact)
    compare("bf16 merged against bf16", merged, unmerged)


if __name__ == "__main__":
    main()
