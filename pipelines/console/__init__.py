"""Output on stderr: progress bars, the lines of the heartbeat, and text that is safe for a terminal.

Must not import any package of alfine but `errors` and `registry`.
"""
