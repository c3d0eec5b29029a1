"""The JSON objects in the folder of a sweep."""

from __future__ import annotations

from pydantic import Field

from pipelines.storage.records import Measurement, RecordBase


class SweepTrial(RecordBase):
    """One hyperparameter value of a strategy. Losses are in nats per token, on rows that no report shows."""

    hyperparameter: str = Field(description="Hyperparameter as in the YAML.")
    task: Measurement = Field(description="Validation loss of the tasks.")
    general: Measurement = Field(description="Loss on general text.")
    sum: Measurement = Field(description="Sum of both losses, which is minimized.")


class SweepVariant(RecordBase):
    """A strategy of a sweep with the chosen hyperparameter."""

    strategy: str = Field(description="Strategy, or several joined by +.")
    hyperparameter: str = Field(description="Chosen hyperparameter as in the YAML.")
    runs: list[str] = Field(description="Run folders, one per seed.")
    trials: list[SweepTrial] = Field(description="Hyperparameter values that were tried.")


class SweepVariants(RecordBase):
    """`variants.json` of a sweep: its finished variants."""

    config: str = Field(description="Path of the config.")
    seeds: int = Field(description="Number of seeds per strategy.")
    num_trials: int = Field(description="Number of hyperparameter values per strategy.")
    variants: list[SweepVariant] = Field(description="Finished variants.")
