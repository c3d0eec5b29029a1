"""Strategies against forgetting, one file each, and what they are built from.

Must not import `training` or Ludwig.
"""
