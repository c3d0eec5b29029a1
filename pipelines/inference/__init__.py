"""The models of a finished run, ready to answer: what `serve`, `chat`, `predict` and the checks of exports share.

Must not import `prediction`, `stages` or `commands`.
"""
