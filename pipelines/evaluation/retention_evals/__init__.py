"""The kinds of retention evals, one per module. Each module registers its class under the kind's name in the YAML."""
