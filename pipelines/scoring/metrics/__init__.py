"""One module per metric. Each registers a `Metric`; to add a metric, add a module here and its test.

Must not import torch or any package of alfine but `scoring`, `storage`, `registry` and `errors`.
"""
