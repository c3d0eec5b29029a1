"""Inference engines that alfine runs in a process of their own. They import nothing of alfine."""
