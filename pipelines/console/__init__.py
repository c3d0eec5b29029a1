"""What a person sees on stderr: progress bars, heartbeat lines, text made safe for a terminal.

Must not import any package of alfine but `errors`.
"""
