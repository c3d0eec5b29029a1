"""What a person sees on stderr: progress bars, the heartbeat's lines, text that is safe for a terminal.

Must not import any package of alfine but `errors` and `registry`.
"""
