"""Exports of a run's tuned model: merged, adapter, GGUF and Ollama, each checked with the engine that loads it.

The engines run in processes of their own that import nothing of alfine.
"""
