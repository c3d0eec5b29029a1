"""Jobs for data files: the columns of a file are read, and a config is written for them (`alfine init`).

Neither torch nor Ludwig is imported.
"""
