"""From a data file to token ids: readers, column templates, splits, mixing, chat template, tokenization.

Must not import `evaluation`, `forgetting`, `training` or Ludwig.
"""
