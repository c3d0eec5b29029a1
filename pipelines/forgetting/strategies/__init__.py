"""The strategies against forgetting, one module each; every module registers a `StrategySpec` in `STRATEGIES`.

A new strategy is one new module with these parts, and its test in tests/forgetting/strategies/ (l2sp.py is the
shortest example):

- a subclass of `StrategySettings`, the section `pipeline.forgetting.NAME` of the YAML;
- a subclass of `Strategy` with the hooks that it needs, or of `PenaltyStrategy`;
- a function `build(context, settings)` that returns the `Strategy` objects of a job;
- `STRATEGIES.register(NAME, StrategySpec(...))` with the title, the requirements and the search space.

`alfine check` imports these modules to validate the section `forgetting:`. They must load without torch
(`pipelines.registry.lazy_import`) and must not import `pipelines.config.job` or `pipelines.config.forgetting`, which
import them.
"""
