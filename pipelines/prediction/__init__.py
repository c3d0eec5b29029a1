"""Predictions on new rows with the tuned model of a run.

`rows` fills the templates of new rows, `models` loads the model of a run, `predict` completes the rows, `outputs`
writes them.
"""
