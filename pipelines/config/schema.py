"""The schema of a config: a snapshot of Ludwig's, and the form that the section `pipeline:` is described in as well.

A node describes one key. All entries are optional; an empty node accepts any value.

    {"types": ["integer", "null"], "min": 1}            a value; also "max", and exclusive "above" and "below"
    {"types": ["text"], "nonempty": true}               a text or a list that must not be empty
    {"types": ["integer"], "word": "auto"}              a number, or this word
    {"enum": ["none", "all", null]}                     one of these values
    {"types": ["list"], "items": {...}, "length": 2}    a list
    {"types": ["mapping"], "fields": {...}}             a section with these keys
    {"types": ["mapping"], "variants": {"lora": {...fields}, ...}}   a section whose keys depend on its `type`
    {"types": ["mapping"], "entries": {...}}            a section whose keys are names that the user chooses
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

SchemaNode = Mapping[str, Any]

LUDWIG_SCHEMA = Path(__file__).with_name("ludwig_schema.json")
"""Written by `python -m pipelines.training.ludwig_schema`."""


@cache
def ludwig_fields() -> dict[str, Any]:
    """The fields of Ludwig's config for `model_type: llm`, by key."""
    return dict(json.loads(LUDWIG_SCHEMA.read_text(encoding="utf-8"))["fields"])
