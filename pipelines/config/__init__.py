"""The YAML of a job: reading it, checking every key, and the `Job` that all stages use.

Must not import torch, Ludwig or any other package of alfine but `console`, `storage` and `errors`.
"""
