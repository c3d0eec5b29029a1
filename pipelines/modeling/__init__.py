"""The model: finding and loading it, attention, packing, prefix sharing, loss, adapters, process group.

Must not import `data`, `evaluation`, `forgetting`, `training` or Ludwig.
"""
