"""Checks of a job before it is trained: everything that would make the run fail or its scores meaningless.

`job.check_job` is what `alfine check` runs: the files and templates of the config (`files`), its metrics and labels
(`metrics`, `labels`) and the chat template (`chat_template`). It needs no tokenizer and no model, and imports neither
torch nor Ludwig.

`dataset.DatasetChecks` is what `alfine run` and `alfine preview` add once rows are tokenized: the tokens of each row
(`rows`), references that cannot reach the full score (`references`) and test rows that are also training rows
(`overlap`).

Both report `findings.Finding`s: errors stop the run, warnings are printed and written into the manifest.
"""
