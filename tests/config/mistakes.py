"""Invalid configs: name → (config, line of the error, part of its message). Each has one error.

`test_mistakes.py` checks the messages; docs/bad_inputs.md, written by `tests/bad_inputs.py`, shows them.
"""

from tests.config import (
    mistakes_adapter,
    mistakes_forgetting,
    mistakes_pipeline,
    mistakes_trainer,
    mistakes_yaml,
)

MISTAKES = (
    mistakes_yaml.MISTAKES
    | mistakes_pipeline.MISTAKES
    | mistakes_trainer.MISTAKES
    | mistakes_adapter.MISTAKES
    | mistakes_forgetting.MISTAKES
)
