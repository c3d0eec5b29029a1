"""The reasoning of completions in the report: how many tokens, and how many completions have no answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipelines.report.formatting import heading
from pipelines.report.results import Pair, ReasoningCounts
from pipelines.storage.records import CompletionRecord


def reasoning_counts(
    base: Sequence[CompletionRecord], tuned: Sequence[CompletionRecord]
) -> Pair[ReasoningCounts] | None:
    """The counts of both models on the rows of one task; None if no completion has reasoning."""
    if not any(record.reasoning for record in (*base, *tuned)):
        return None
    return Pair(_counts(base), _counts(tuned))


def _counts(records: Sequence[CompletionRecord]) -> ReasoningCounts:
    return ReasoningCounts(
        completions=sum(bool(record.reasoning) for record in records),
        cut=sum(record.reasoning_cut for record in records),
        unanswered=sum(is_unanswered(record) for record in records),
        mean_tokens=sum(record.num_reasoning_tokens for record in records) / len(records),
    )


def is_unanswered(record: CompletionRecord) -> bool:
    """Whether the model ended its turn after or inside its reasoning, without an answer."""
    return bool(record.reasoning) and not record.completion.strip() and not record.reasoning_cut


def reasoning_caveats(
    counts: Pair[ReasoningCounts] | None,
    base: Sequence[CompletionRecord],
    tuned: Sequence[CompletionRecord],
    models: tuple[str, str],
) -> Iterable[str]:
    """Sentences on completions without an answer: a difference in them is no difference in what the models know."""
    rows = len(base)
    if counts is None:
        return
    pairs = list(zip(models, (counts.base, counts.tuned), strict=True))
    if counts.base.cut or counts.tuned.cut:
        limit = max(record.num_generated_tokens for record in (*base, *tuned) if record.reasoning_cut)
        numbers = " and ".join(f"{count.cut:,} of {rows:,} {model} completions" for model, count in pairs)
        yield (
            f"{numbers} were cut at {limit:,} tokens, inside their reasoning: they have no answer, which counts as "
            "wrong. Raise max_reasoning_tokens."
        )
    for model, count in pairs:
        if count.unanswered:
            unanswered = f"{count.unanswered:,} of {rows:,} completions"
            yield f"{heading(model)} ends {unanswered} after its reasoning, without an answer."
