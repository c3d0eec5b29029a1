"""The run folder, the cache folder, atomic writing and strict JSON.

Must not import any package of alfine but `errors`.
"""
