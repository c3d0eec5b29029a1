"""Programs that load an export as its users do. Each runs in a process of its own and imports nothing of alfine."""
