"""alfine: fine-tune a language model from one YAML file, and measure what it learned and forgot.

    from pipelines import load_job, run_job, analyse

The public API is `__all__`; docs/api.md describes it. Everything else may change without notice.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pipelines.version import __version__

if TYPE_CHECKING:
    from pipelines.api import (
        AlfineError,
        Analysis,
        CheckResult,
        ConfigError,
        ConsoleReporter,
        DataError,
        Job,
        MachineError,
        ModelError,
        Problem,
        Run,
        RunError,
        analyse,
        check_job,
        compare_models,
        load_job,
        predict,
        run_job,
        write_report,
    )

__all__ = [
    "AlfineError",
    "Analysis",
    "CheckResult",
    "ConfigError",
    "ConsoleReporter",
    "DataError",
    "Job",
    "MachineError",
    "ModelError",
    "Problem",
    "Run",
    "RunError",
    "__version__",
    "analyse",
    "check_job",
    "compare_models",
    "load_job",
    "predict",
    "run_job",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # Imported at the first use: `alfine --help` needs none of it. (PEP 562)
    if name in __all__:
        return getattr(importlib.import_module("pipelines.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
