"""Training with Ludwig: trainer, checkpoints, learning rates, FSDP, Ray. Only this package imports Ludwig.

Must not import `report`, `checks`, `stages` or `commands`.
"""
