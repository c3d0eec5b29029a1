"""One training through Ludwig: trainer, checkpoints, learning rates, FSDP, Ray. The only package that imports Ludwig.

Must not import `report`, `checks`, `stages` or `commands`.
"""
