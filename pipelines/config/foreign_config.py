"""Problems for a config that is written for another tool."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from pipelines.config.key_hints import KeyHints
from pipelines.config.ludwig_checks import check_ludwig_config
from pipelines.config.other_tools import IMPORTABLE, LUDWIG
from pipelines.config.yaml_source import Document, sort_problems
from pipelines.errors import Problem

MAX_KEY_PROBLEMS = 8
_LUDWIG_FEATURES = ("input_features", "output_features", "prompt", "model_type")
"""Keys of Ludwig that the section `pipeline:` replaces."""


def foreign_config_problems(tool: str, config: Mapping[str, Any], document: Document, hints: KeyHints) -> list[Problem]:
    """A problem that names the tool, then one for each key that has a counterpart in alfine.

    tool: as returned by `detect_tool`.
    config: the config without the section `pipeline:`.
    """
    if tool == LUDWIG:
        advice = "write pipeline.tasks instead of the features and the prompt, and keep adapter, trainer and generation"
        kept = {key: value for key, value in config.items() if key not in _LUDWIG_FEATURES}
        key_problems = check_ludwig_config(kept, document, hints)
    else:
        advice = "start from ludwig_configs/instruction.yaml and transfer the keys below"
        messages = {key: hints.foreign_key(key, value) for key, value in config.items()}
        key_problems = [document.problem(message, key) for key, message in messages.items() if message]
        shared = {key: value for key, value in config.items() if key in hints.fields}
        key_problems += check_ludwig_config(shared, document, hints)
    if tool in IMPORTABLE:
        file = shlex.quote(str(document.locations[()].file))
        data = " --data FILE" if tool == LUDWIG else ""
        advice = f"alfine import {file}{data} --output job.yaml writes one of it; by hand: {advice}"
    summary = document.problem(f'this is {tool} config, not one of alfine; {advice} (README, "Your own data")')
    key_problems = sort_problems([*document.problems, *key_problems])
    shown = key_problems[:MAX_KEY_PROBLEMS]
    num_hidden = len(key_problems if tool == LUDWIG else config) - len(shown)
    rest = [Problem(f"{num_hidden} more of its keys are not covered here", summary.file)] if num_hidden > 0 else []
    return [summary, *shown, *rest]
