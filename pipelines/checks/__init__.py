"""What is wrong with a job, found before training: rows, references, scores, chat template.

Must not import Ludwig; `checks.job` must not import torch.
"""
