"""alfine: fine-tune a language model from one YAML file, and see what it learned."""

__version__ = "0.1.0"
