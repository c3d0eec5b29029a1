"""A tiny model, with and without an adapter, and rows for it."""

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.token_sequences import TokenSequences
from tests.tiny import make_model


def rows(num_rows=6, seed=0, vocabulary=200):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 12, num_rows)
    return TokenSequences.supervised_from([rng.integers(5, vocabulary, length) for length in lengths], [2] * num_rows)


def base(folder):
    return load_causal_lm(make_model(folder), allow_half_precision=False)


def lora(folder, moved=False, seed=1):
    """The model with an adapter at its start, or `moved` away from it."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base(folder), config)
    if moved:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.05)
    return model


def sgd(model, learning_rate=0.1):
    return torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=learning_rate)
