"""Strategies against forgetting: one module each in `strategies/`, and what they are built from.

Must not import `training` or Ludwig.
"""
