"""Metrics, statistics and the sandbox that runs unit tests of generated code.

Must not import torch, `modeling`, `data` or Ludwig.
"""
