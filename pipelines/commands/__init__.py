"""The verbs of the command line, one module each, and what they share.

Must not be imported by any other package of alfine but `cli`.
"""
