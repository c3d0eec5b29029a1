"""One function for base and tuned: prompts in, completions out. The model alone differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import Job
from pipelines.errors import RunError
from pipelines.prompts import PromptFormat

if TYPE_CHECKING:
    import torch

    from pipelines.engine.packing import Rows

BATCH_ROWS = 128
"""Prompts answered together; sorted by length first, so that little is padding."""
BATCH_TOKENS = 32_768
"""Tokens, with those to come, whose keys and values are held at once."""

Progress = Callable[[int], None]
"""Called with the number of rows just finished."""


@dataclass(frozen=True)
class Completion:
    text: str
    new_tokens: int
    finished: bool
    """False where it was cut at max_new_tokens."""
    reference_loss: float | None = None
    """Of the right answer and its end token, in nats per token, where one was given."""


class LoadedModel:
    """A model for completions: the base and, attached over the same weights, the tuned one."""

    def __init__(self, model: torch.nn.Module, prompts: PromptFormat) -> None:
        self.model = model.eval()
        self.prompts = prompts

    @classmethod
    def base(cls, folder: Path, chat_template: bool | None, quantization: Any = None) -> LoadedModel:
        from pipelines.engine.model import load_causal_lm

        model = load_causal_lm(folder, frozen=True, quantization=quantization)
        return cls(model, PromptFormat.of_folder(folder, chat_template))

    def logits(self, rows: Rows) -> torch.Tensor:
        """What it predicts at the supervised tokens of `rows`: [rows.supervised_tokens, vocabulary]."""
        import torch

        from pipelines.engine.packing import supervised_logits

        with torch.no_grad():
            return supervised_logits(self.model, rows)[0]

    @property
    def has_adapter(self) -> bool:
        from peft import PeftModel

        return isinstance(self.model, PeftModel)

    def attach(self, tuned: Path) -> LoadedModel:
        """The tuned model in `tuned`: its adapter over these weights, or its own full weights. Raises RunError where it is not
        the model that training left."""
        from pipelines.engine.adapters import check_saved
        from pipelines.engine.model import load_causal_lm

        if (tuned / "adapter_config.json").exists():
            from peft import PeftModel

            if self.has_adapter:
                raise RunError("an adapter is attached already")
            model: torch.nn.Module = PeftModel.from_pretrained(self.model, tuned)
        else:
            model = load_causal_lm(tuned, frozen=True)
        check_saved(model, tuned)
        return LoadedModel(model, self.prompts)


def quantization_of(job: Job) -> Any:
    """Ludwig's quantization settings, None without: the same for both passes, for training and for `predict`."""
    settings = job.ludwig.get("quantization")
    if not settings:
        return None
    from ludwig.schema.llms.quantization import QuantizationConfig

    return QuantizationConfig.model_validate(settings)


def complete(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    generation: dict[str, Any],
    max_new_tokens: Sequence[int],
    progress: Progress = lambda rows: None,
    references: Sequence[list[int]] | None = None,
) -> list[Completion]:
    """A completion for each tokenised prompt, in the order given, and the loss of its reference, where there are any.

    `generation` holds transformers' generation settings; `max_new_tokens` is per prompt. `references` are the tokens
    that should follow each prompt, perhaps none. Rows are batched with rows of the same bound and about the same length.
    """
    settings = {key: value for key, value in generation.items() if value is not None}
    order = sorted(range(len(prompts)), key=lambda n: (max_new_tokens[n], len(prompts[n]), n))
    answers: dict[int, Completion] = {}
    while order:
        bound = max_new_tokens[order[0]]
        batch = [n for n in order[:BATCH_ROWS] if max_new_tokens[n] == bound]
        batch = batch[: max(1, BATCH_TOKENS // (len(prompts[batch[-1]]) + bound))]
        order = order[len(batch) :]
        whole = [[*prompts[n], *(references[n] if references else ())] for n in batch]
        rows = _answer(loaded, whole, [len(prompts[n]) for n in batch], {**settings, "max_new_tokens": bound})
        answers.update(zip(batch, rows, strict=True))
        progress(len(batch))
    return [answers[n] for n in range(len(prompts))]


def _answer(
    loaded: LoadedModel, whole: list[list[int]], prompt_lengths: list[int], settings: dict[str, Any]
) -> list[Completion]:
    import numpy as np

    from pipelines.engine.generation import continuations, read, reads_once
    from pipelines.engine.packing import Rows, row_losses

    rows = Rows([np.asarray(ids) for ids in whole], prompt_lengths)
    losses: list[float | None] = [None] * len(whole)
    cache = None
    if reads_once(loaded.model):
        losses, cache = read(loaded.model, rows)
    elif rows.supervised_tokens:
        scored = [n for n, length in enumerate(rows.supervised_lengths) if length]
        for n, loss in zip(scored, row_losses(loaded.model, rows.take(scored)), strict=True):
            losses[n] = loss
    prompts = [ids[:length] for ids, length in zip(whole, prompt_lengths, strict=True)]
    made = continuations(loaded.model, prompts, loaded.prompts.stop_ids, settings, cache)
    return [_completion(loaded.prompts, tokens, loss) for tokens, loss in zip(made, losses, strict=True)]


def _completion(prompts: PromptFormat, tokens: list[int], loss: float | None) -> Completion:
    finished = bool(tokens) and tokens[-1] in prompts.stop_ids
    text = prompts.tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True)
    return Completion(str(text), len(tokens), finished, loss)
