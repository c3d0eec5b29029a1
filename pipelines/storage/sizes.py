"""Sizes in bytes as text."""

from __future__ import annotations


def format_bytes(size: float) -> str:
    """A size in the largest decimal unit, such as `1.4 GB` or `22 MB`."""
    if size < 0:
        return f"-{format_bytes(-size)}"
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            value = size / factor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{max(round(size / 1e3), 0)} kB"
