"""The work of each stage of a run, and what each stage depends on.

Must not import `run` or `commands`.
"""
