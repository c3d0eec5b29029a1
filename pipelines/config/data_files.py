"""The key `data` of a task: what names its rows."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from pipelines.config.base import Section, Text


def _kind_of_value(value: Any) -> str:
    return "<files>" if isinstance(value, list | tuple) else "<file>"


FilesOfOneKind = Annotated[
    Annotated[Text, Tag("<file>")] | Annotated[list[Text], Field(min_length=1), Tag("<files>")],
    Discriminator(_kind_of_value),
]
"""A file, a pattern, a folder, `hub:…`, or a list of these."""


class DataFiles(Section):
    """The files of each split, instead of files whose rows are split."""

    train: FilesOfOneKind = Field(description="Files of the training rows.")
    validation: FilesOfOneKind | None = Field(
        default=None,
        description="Files of the validation rows; None draws them from the training rows by `pipeline.split`.",
    )
    test: FilesOfOneKind | None = Field(
        default=None, description="Files of the test rows; None draws them from the training rows by `pipeline.split`."
    )


def _kind_of_data(value: Any) -> str:
    return "<splits>" if isinstance(value, dict | DataFiles) else _kind_of_value(value)


Data = Annotated[
    Annotated[Text, Tag("<file>")]
    | Annotated[list[Text], Field(min_length=1), Tag("<files>")]
    | Annotated[DataFiles, Tag("<splits>")],
    Discriminator(_kind_of_data),
]
"""The value of `data`."""
