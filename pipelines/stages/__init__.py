"""The work of each stage of a run, what each stage depends on, and the cache of the base model's results.

Must not import `run` or `commands`.
"""
