"""`alfine chat`: conversations with the base and the tuned model of a run in the terminal.

`session` holds the conversations, `commands` the lines that begin with a slash, `display` shows answers while they are
generated, `loop` reads lines until the end.
"""
