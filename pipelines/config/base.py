"""The base class of the sections of `pipeline:`, and their types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"\A[A-Za-z0-9_-]+\z")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of the YAML: immutable, without type conversions, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
