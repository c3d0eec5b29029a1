"""What a model answers and scores: completions, losses, retention evals.

Must not import `forgetting`, `training` or Ludwig.
"""
