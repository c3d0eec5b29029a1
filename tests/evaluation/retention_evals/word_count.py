"""A kind of retention eval as a contributor would add it: one file, here outside the package.

It scores each text of the column `text` by the words that the model generates after it.
"""

from collections.abc import Sequence

from pydantic import Field

from pipelines.config.base import Count
from pipelines.config.retention_registry import RETENTION_EVAL_KINDS
from pipelines.evaluation.completions import LoadedModel, complete
from pipelines.evaluation.data_files import read_text_column
from pipelines.evaluation.retention import Measure, PreparationContext, PreparedRetentionEval, RetentionEval
from pipelines.scoring.metric import Unit


class WordCount(RetentionEval):
    max_new_tokens: Count = Field(default=4, description="Limit on the tokens of a completion.")

    @classmethod
    def measure(cls, metric: str) -> Measure:
        return Measure("words generated", Unit.POINTS, higher_is_better=True)

    def check(self, name: str) -> None:
        read_text_column(self.file, "text")

    def prepare(self, name: str, context: PreparationContext) -> list[tuple[list[int], int]]:
        texts = read_text_column(self.file, "text")[: self.limit]
        return [(context.prompt_format.encode_text(text), self.max_new_tokens) for text in texts]

    @classmethod
    def score(
        cls, loaded: LoadedModel, prepared: PreparedRetentionEval, reference_logits: object
    ) -> Sequence[float | None]:
        prompts, limits = zip(*prepared.items, strict=True)
        return [float(len(c.text.split())) for c in complete(loaded, prompts, {"do_sample": False}, limits)]


RETENTION_EVAL_KINDS.register("word_count", WordCount)
