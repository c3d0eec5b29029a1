"""One module per verb of the command line, imported when the verb is called.

May import everything; nothing but `cli` imports it.
"""
