"""The mean negative log-likelihood of the reference, in nats per token."""

from __future__ import annotations

from pipelines.errors import DataError
from pipelines.scoring.custom_metrics import as_finite_float
from pipelines.scoring.metric import CompletionFields, Metric, Score, Unit, register, row_location


def _score(record: CompletionFields) -> Score:
    try:
        return Score(as_finite_float(record["reference_nll"]))
    except ValueError as error:
        raise DataError(f"{row_location(record)}: reference_nll {error}") from None


register(
    Metric(
        name="nll",
        title="NLL",
        unit=Unit.NATS_PER_TOKEN,
        score=_score,
        higher_is_better=False,
        scores_completions=False,
    )
)
