"""Loading of a YAML file into a checked `Job`.

`job.load_job` is the entry point. In the order of use: `yaml_parser` parses the file into a `yaml_source.Document`,
which knows the source location of every key, `overrides` applies `key=value` from the command line, and
`renamed_keys` reports keys of earlier versions. `pipeline_checks` validates the section `pipeline:` (its models are
in `pipeline` and `forgetting`, the errors of pydantic are worded in `pydantic_errors`), `ludwig_checks` the rest
against a snapshot of Ludwig's schema (`schema`, `ludwig_unsupported`, `trainer_checks`). `key_hints` and
`other_tools` suggest what an unknown key may mean, and `foreign_config` answers a config of another tool.
`lr_schedules` computes learning rates.

Must not import torch, transformers or Ludwig, nor any package of alfine but `scoring`, `console`, `storage`,
`errors` and `registry`. The settings of the strategies and retention evals are looked up through `registry`.
"""
