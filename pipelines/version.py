"""The version of alfine."""

__version__ = "0.1.0"
