"""Imports the modules of checks, and puts their checks into the order in which they run."""

from importlib import import_module

from tests.gpu_acceptance.registry import CHECKS

MODULES = (
    *("attention", "runs", "kernels", "completions", "memory"),
    *("resume", "strategies", "optimizers", "speed", "large_models"),
)
ORDER = (
    # part 1
    *("environment", "attention_paths", "steps_equal_hugging_face", "whole_run", "out_of_memory"),
    *("full_fine_tuning_peak", "greedy_decoding", "qlora", "every_optimizer", "cuda_graphs", "fused_kernels"),
    *("every_strategy", "resumed_training"),
    # part 2
    "training_step",
    # part 3
    *("completions_1_5b", "qlora_7b", "full_fine_tuning_1_5b", "lora_7b", "evaluation_pass", "completions_135m"),
    "qlora_7b_short_rows",
)
"""The checks of each part, the most telling first. Those that have passed on a GPU before come after those that have
not, except for the three on which everything else rests."""

for _name in MODULES:
    import_module(f"tests.gpu_acceptance.{_name}")
CHECKS.sort(key=lambda check: ORDER.index(check.name))

__all__ = ["CHECKS"]
