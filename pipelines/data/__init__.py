"""Processing of data files into token ids.

In the order of use: `readers` (and `parquet`) stream the rows of a file, `splits` assigns each to train, validation or
test, `templates` puts its columns into a prompt and a completion, and `examples` does all of this for the tasks of a
job. `prompt_format` (with `chat_template`) turns an example into tokens, `tokenize_rows` does so for all and stores
them, and `mixing` decides which of them an epoch of training samples. `sample_prompts` reads prompts without a task.

Must not import `evaluation`, `forgetting`, `training` or Ludwig.
"""
