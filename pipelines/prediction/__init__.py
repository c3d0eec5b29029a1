"""Predictions on new rows with the models of a run.

`rows` fills the templates of new rows, `models` loads the tuned model, `completers` completes batches here or on Ray,
`predict` reads, checks and completes the rows of files, `resume` writes them to an output and resumes an
interrupted one, `outputs` and `column_types` know the formats.
"""
