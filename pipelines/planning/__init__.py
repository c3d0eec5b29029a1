"""The plan of a job before any weight is loaded: its work, its memory, its time.

This package imports neither torch nor transformers, except `calibration`.
"""
