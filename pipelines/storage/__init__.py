"""The run folder and its files, the cache folder, and strict JSON.

Must not import any package of alfine but `errors` and `registry`.
"""
