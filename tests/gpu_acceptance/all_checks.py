"""Imports the modules of checks, in the order in which their checks run."""

from importlib import import_module

from tests.gpu_acceptance.registry import CHECKS

MODULES = (
    "attention",
    "runs",
    "kernels",
    "completions",
    "memory",
    "resume",
    "strategies",
    "optimizers",
    "speed",
    "large_models",
)

for _name in MODULES:
    import_module(f"tests.gpu_acceptance.{_name}")

__all__ = ["CHECKS"]
