"""The strategies against forgetting, one module each; every module registers a `StrategySpec` in `STRATEGIES`.

`alfine check` imports these modules to validate the section `forgetting:`. They must load without torch
(`pipelines.registry.lazy_import`) and must not import `pipelines.config.job` or `pipelines.config.forgetting`, which
import them.
"""
