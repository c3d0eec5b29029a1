"""One function for base and tuned: prompts in, completions out. The model alone differs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.config.job import Job
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import DataError, RunError
from pipelines.modeling.base_models import config_context_length
from pipelines.storage.files import digest

if TYPE_CHECKING:
    import torch

    from pipelines.modeling.packing import TokenSequences

MAX_BATCH_SIZE = 128
"""Prompts answered together; sorted by length first, so that little is padding."""
MAX_BATCH_TOKENS = 32_768
"""Tokens, with those to come, whose keys and values are held at once."""

COMPLETIONS_FORMAT = 2
"""Version of the records in completions.jsonl; part of the key under which a base model's completions are cached."""

Progress = Callable[[int], None]
"""Called with the number of rows just finished."""


FinishReason = Literal["stop", "length"]
"""Why a completion ends: at a stop token, or cut at `max_new_tokens`."""


@dataclass(frozen=True)
class Completion:
    text: str
    num_generated_tokens: int
    finish_reason: FinishReason
    reference_nll: float | None = None
    """Of the right answer and its end token, in nats per token, where one was given."""


class LoadedModel:
    """A model for completions: the base and, attached over the same weights, the tuned one."""

    def __init__(self, model: torch.nn.Module, prompts: PromptFormat) -> None:
        self.model = model.eval()
        self.prompts = prompts

    @classmethod
    def base(cls, folder: Path, chat_template: bool | None, quantization: Any = None) -> LoadedModel:
        from pipelines.modeling.loading import load_causal_lm

        model = load_causal_lm(folder, frozen=True, quantization=quantization)
        return cls(model, PromptFormat.from_folder(folder, chat_template))

    def logits(self, rows: TokenSequences) -> torch.Tensor:
        """What it predicts at the supervised tokens of `rows`: [rows.supervised_tokens, vocabulary]."""
        import torch

        from pipelines.modeling.packing import supervised_logits

        with torch.no_grad():
            return supervised_logits(self.model, rows)[0]

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return config_context_length(self.model.config.to_dict())  # type: ignore[operator, union-attr]

    @property
    def has_adapter(self) -> bool:
        from peft import PeftModel

        return isinstance(self.model, PeftModel)

    def with_adapter(self, tuned: Path) -> LoadedModel:
        """The tuned model in `tuned`: its adapter over these weights, or its own full weights. Raises ModelError where it is not
        whole, RunError where it is not the model that training left."""
        from pipelines.modeling.adapters import attach_adapter, check_saved
        from pipelines.modeling.loading import load_causal_lm

        if (tuned / "adapter_config.json").exists():
            if self.has_adapter:
                raise RunError("an adapter is attached already")
            model: torch.nn.Module = attach_adapter(self.model, tuned)
        else:
            model = load_causal_lm(tuned, frozen=True)
        check_saved(model, tuned)
        return LoadedModel(model, self.prompts)


def generation_settings(generation: dict[str, Any], prompts: PromptFormat) -> dict[str, Any]:
    """Every setting that acts when answers are made: those of the YAML over neutral ones (a model folder's own are not
    used), and the tokens at which an answer ends."""
    given = {key: value for key, value in generation.items() if value is not None}
    return {**given, "stop_tokens": [str(prompts.tokenizer.convert_ids_to_tokens(token)) for token in prompts.stop_ids]}


def quantization_config(job: Job) -> Any:
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
    seed: int = 0,
) -> list[Completion]:
    """A completion for each tokenised prompt, in the order given, and the loss of its reference, where there are any.

    `generation` holds transformers' generation settings; `max_new_tokens` is per prompt, and ends where the model's context
    does. `references` are the tokens that should follow each prompt, perhaps none. Rows are batched with rows of the same
    bound and about the same length. Sampling draws from `seed` and the prompts of a batch. Raises DataError for a prompt or
    a reference that the context does not hold.
    """
    settings = {key: value for key, value in generation.items() if value is not None}
    max_new_tokens = _within_context(loaded.context_length, prompts, max_new_tokens, references)
    order = sorted(range(len(prompts)), key=lambda n: (max_new_tokens[n], len(prompts[n]), n))
    answers: dict[int, Completion] = {}
    while order:
        bound = max_new_tokens[order[0]]
        batch = [n for n in order[:MAX_BATCH_SIZE] if max_new_tokens[n] == bound]
        batch = batch[: max(1, MAX_BATCH_TOKENS // (len(prompts[batch[-1]]) + bound))]
        order = order[len(batch) :]
        whole = [[*prompts[n], *(references[n] if references else ())] for n in batch]
        with _seeded(seed, whole) if settings.get("do_sample") else contextlib.nullcontext():
            rows = _answer(loaded, whole, [len(prompts[n]) for n in batch], {**settings, "max_new_tokens": bound})
        answers.update(zip(batch, rows, strict=True))
        progress(len(batch))
    return [answers[n] for n in range(len(prompts))]


def _within_context(
    context: int, prompts: Sequence[list[int]], bounds: Sequence[int], references: Sequence[list[int]] | None
) -> list[int]:
    """The bounds, none beyond the context: some models end in an error there, others in nonsense."""
    for number, prompt in enumerate(prompts):
        held = len(prompt) + max(1, len(references[number]) if references else 0)
        if held > context:
            raise DataError(
                f"prompt {number + 1} of {len(prompts)} has {held:,} tokens with its answer, this model's context holds "
                f"{context:,}; shorten it"
            )
    return [min(bound, context - len(prompt)) for prompt, bound in zip(prompts, bounds, strict=True)]


@contextlib.contextmanager
def _seeded(seed: int, rows: Sequence[list[int]]) -> Iterator[None]:
    """Random numbers that depend on the seed and on what is answered, not on what the process has drawn before."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(int(digest(seed, rows)[:15], 16))
        yield


def _answer(
    loaded: LoadedModel, whole: list[list[int]], prompt_lengths: list[int], settings: dict[str, Any]
) -> list[Completion]:
    import numpy as np

    from pipelines.evaluation.generation import generate_from_cache, packed_prefill, supports_packed_prefill
    from pipelines.modeling.packing import TokenSequences, sequence_losses

    rows = TokenSequences([np.asarray(ids) for ids in whole], prompt_lengths)
    losses: list[float | None] = [None] * len(whole)
    cache = None
    if supports_packed_prefill(loaded.model):
        losses, cache = packed_prefill(loaded.model, rows)
    elif rows.supervised_tokens:
        scored = [n for n, length in enumerate(rows.supervised_lengths) if length]
        for n, loss in zip(scored, sequence_losses(loaded.model, rows.select(scored)), strict=True):
            losses[n] = loss
    prompts = [ids[:length] for ids, length in zip(whole, prompt_lengths, strict=True)]
    made = generate_from_cache(loaded.model, prompts, loaded.prompts.stop_ids, settings, cache)
    return [_completion(loaded.prompts, tokens, loss) for tokens, loss in zip(made, losses, strict=True)]


def _completion(prompts: PromptFormat, tokens: list[int], loss: float | None) -> Completion:
    text, finish_reason = decode_completion(prompts, tokens)
    return Completion(text, len(tokens), finish_reason, loss)


def decode_completion(prompts: PromptFormat, tokens: list[int]) -> tuple[str, FinishReason]:
    """The text of generated `tokens` up to the first stop token, and why it ends there: at a stop token or at the length limit."""
    end = next((place for place, token in enumerate(tokens) if token in prompts.stop_ids), None)
    text = prompts.tokenizer.decode(tokens[:end], skip_special_tokens=True)
    return str(text), "length" if end is None else "stop"
