"""What keeps a model from forgetting, one file a strategy, and what tells whether it did (guards)."""
