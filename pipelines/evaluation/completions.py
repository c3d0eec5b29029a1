"""Generation of completions, the same for the base and the tuned model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.config.chat_template import DEFAULT_CHAT_TEMPLATE, ChatTemplateSettings
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.reasoning import SplitCompletion
from pipelines.errors import DataError, RunError
from pipelines.modeling.base_models import config_context_length
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.registry import lazy_import
from pipelines.storage.files import digest

if TYPE_CHECKING:
    import numpy as np
    import peft
    import torch

    from pipelines.evaluation import decoding as decoding_module
    from pipelines.evaluation import generation as generation_module
    from pipelines.evaluation import pool_decoding, slot_decoding, vllm_decoding
    from pipelines.modeling import adapters, loading, memory, merged_adapter, packed_weights, packing
else:
    # torch and transformers take seconds to import; `check` and `report` need neither.
    np, peft, torch = lazy_import("numpy"), lazy_import("peft"), lazy_import("torch")
    generation_module = lazy_import("pipelines.evaluation.generation")
    slot_decoding = lazy_import("pipelines.evaluation.slot_decoding")
    decoding_module = lazy_import("pipelines.evaluation.decoding")
    pool_decoding = lazy_import("pipelines.evaluation.pool_decoding")
    vllm_decoding = lazy_import("pipelines.evaluation.vllm_decoding")
    adapters, loading, memory, merged_adapter, packed_weights, packing = (
        lazy_import(f"pipelines.modeling.{name}")
        for name in ("adapters", "loading", "memory", "merged_adapter", "packed_weights", "packing")
    )

MAX_BATCH_SIZE = 128
"""Prompts per batch. Prompts are sorted by length first, so that there is little padding."""
MAX_BATCH_TOKENS = 32_768
"""Tokens per batch, those to be generated included, whose keys and values are cached at once."""

COMPLETIONS_FORMAT = 4
"""Version of how completions are computed; part of the key under which a base model's completions are cached."""

Progress = Callable[[int], None]
"""Called with the number of prompts that have just been completed."""

FinishReason = Literal["stop", "length"]
"""Why a completion ends: at a stop token, or cut at `max_new_tokens`."""


Decoding = Literal["generate", "pool", "slots", "graph"]
"""How tokens are generated: by transformers' `generate`, by `pool_decoding`, by `slot_decoding`, or by that as a CUDA
graph."""


@dataclass(frozen=True)
class InferenceSettings:
    """How completions are computed. They are the same up to rounding.

    Attributes:
        decoding: None takes the fastest for the device that passes its trial.
        merge_adapter: whether the adapter is merged while completions are generated; None decides by the device and
            a trial, see `adapter_merged`.
    """

    decoding: Decoding | None = None
    merge_adapter: bool | None = None


DEFAULT_INFERENCE = InferenceSettings()


@dataclass(frozen=True)
class Completion:
    """A generated completion.

    Attributes:
        text: the answer: the decoded tokens before the stop token, without special tokens and without the thought
            before the answer. It is empty if the thought does not end.
        num_generated_tokens: the generated tokens, the thought and the stop token included.
        finish_reason: "stop", or "length" if it was cut at `max_new_tokens`.
        reference_nll: the mean negative log-likelihood of the reference and its end token, in nats per token; None if
            no reference was given.
        reasoning: the thought before the answer; None if there is none.
        reasoning_cut: whether the completion was cut inside its thought.
        num_reasoning_tokens: the generated tokens before the answer: the thought and its markers.
        tokens: the generated tokens, the stop token included.
    """

    text: str
    num_generated_tokens: int
    finish_reason: FinishReason
    reference_nll: float | None = None
    reasoning: str | None = None
    reasoning_cut: bool = False
    num_reasoning_tokens: int = 0
    tokens: Sequence[int] = ()


class LoadedModel:
    """A model in evaluation mode with its prompt format: a base model, or the tuned model on the same base weights."""

    def __init__(
        self,
        model: torch.nn.Module,
        prompt_format: PromptFormat,
        inference: InferenceSettings = DEFAULT_INFERENCE,
        vllm: vllm_decoding.VllmModel | None = None,
        vllm_adapter: str | None = None,
    ) -> None:
        """Puts `model` itself into evaluation mode: the caller restores its mode if it goes on training.

        vllm: the same base in vLLM; None generates in this process. `vllm_adapter` is the adapter's name there.
        """
        self.model = model.eval()
        self.prompt_format = prompt_format
        self.inference = inference
        self.vllm, self.vllm_adapter = vllm, vllm_adapter
        self.inference_note: str | None = None
        """How `complete` has last computed completions, for the log; None if by `generate`, with nothing merged."""
        self.engine: str | None = None
        """The program that has last computed completions, such as `vLLM 0.26.0`; None for this one."""

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        settings: ChatTemplateSettings = DEFAULT_CHAT_TEMPLATE,
        quantization: Mapping[str, Any] | None = None,
        allow_vllm: bool = False,
    ) -> LoadedModel:
        """Loads a whole model (not an adapter). `quantization` is that section of the config.

        allow_vllm: whether vLLM may generate completions, see `vllm_decoding.should_use_vllm`.
        """
        model = loading.load_causal_lm(folder, allow_half_precision=True, quantization=quantization)
        vllm = vllm_decoding.VllmModel(folder, quantization) if allow_vllm else None
        return cls(model, PromptFormat.from_folder(folder, settings), vllm=vllm)

    def logits(self, sequences: TokenSequences) -> torch.Tensor:
        """The logits that predict the supervised tokens: [sequences.num_supervised_tokens, vocabulary]."""
        with torch.no_grad():
            return packing.supervised_logits(self.model, sequences)[0]

    @property
    def context_length(self) -> int:
        """The tokens of prompt and completion together that the model can attend to."""
        return config_context_length(self.model.config.to_dict())  # type: ignore[operator, union-attr]

    @property
    def has_adapter(self) -> bool:
        return isinstance(self.model, peft.PeftModel)

    def with_tuned_model(self, tuned: Path) -> LoadedModel:
        """Loads the tuned model in the folder `tuned`: its adapter on these weights, or its own full weights.

        Raises ModelError if the folder is incomplete, RunError if the model is not the one that training exported.
        """
        vllm, name = self.vllm, None
        if (tuned / "adapter_config.json").exists():
            if self.has_adapter:
                raise RunError("an adapter is attached already")
            model: torch.nn.Module = adapters.attach_adapter(self.model, tuned)
            name = vllm.add_adapter(tuned) if vllm else None
        else:
            model = loading.load_causal_lm(tuned, allow_half_precision=True)
            vllm = vllm_decoding.VllmModel(tuned, None) if vllm else None
        adapters.check_matches_training(model, tuned)
        return LoadedModel(model, self.prompt_format, self.inference, vllm, name)


def generation_settings(generation: dict[str, Any], prompt_format: PromptFormat) -> dict[str, Any]:
    """Every generation setting that has an effect, and the stop tokens.

    These are the settings of the YAML over neutral ones; a model folder's own generation_config.json is not used.
    """
    settings = {key: value for key, value in generation.items() if value is not None}
    tokenizer = prompt_format.tokenizer
    return {
        **settings,
        "stop_tokens": [str(tokenizer.convert_ids_to_tokens(token)) for token in prompt_format.stop_ids],
    }


def complete(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    generation: dict[str, Any],
    max_new_tokens: Sequence[int],
    progress: Progress = lambda count: None,
    references: Sequence[list[int]] | None = None,
    seed: int = 0,
) -> list[Completion]:
    """Generates a completion for each tokenized prompt, in the given order, and scores its reference if there is one.

    Args:
        generation: settings of `transformers.GenerationConfig`; None values are left out.
        max_new_tokens: the limit of each prompt's completion. It is lowered to what the context leaves.
        progress: called with the number of prompts completed, after each batch.
        references: the tokens that should follow each prompt; an empty list for a prompt without a reference.
        seed: sampling draws from this seed and the prompts of the batch.

    Raises DataError if a prompt with its reference is longer than the model's context, and MachineError if a batch of
    one prompt does not fit into memory.
    """
    settings = {key: value for key, value in generation.items() if value is not None}
    limits = _limits_within_context(loaded.context_length, prompts, max_new_tokens, references)
    sequences = [[*prompt, *(references[index] if references else ())] for index, prompt in enumerate(prompts)]
    prompt_lengths, stop_ids = list(map(len, prompts)), loaded.prompt_format.stop_ids
    if vllm_decoding.should_use_vllm(loaded.vllm, loaded.model, settings, sum(limits)):
        with contextlib.suppress(vllm_decoding.VllmNotUsed):
            return _complete_with_vllm(loaded, prompts, sequences, limits, progress)
    loaded.engine = None
    with (
        merged_adapter.adapter_merged(loaded.model, loaded.inference.merge_adapter) as is_merged,
        packed_weights.packed_weights(loaded.model),
    ):
        decoding = decoding_module.select_decoding(loaded.model, settings, loaded.inference.decoding)
        loaded.inference_note = _inference_note(decoding, is_merged, loaded.has_adapter)
        if decoding == "generate":
            return _complete_in_batches(loaded, sequences, prompt_lengths, settings, limits, progress, seed)
        tokens = _token_sequences(sequences, prompt_lengths)
        if decoding == "pool":
            generated, nlls = pool_decoding.decode_in_pool(loaded.model, tokens, limits, stop_ids, progress)
        else:
            use_graph = decoding == "graph"
            generated, nlls = slot_decoding.decode_greedy(loaded.model, tokens, limits, stop_ids, use_graph, progress)
    return _completions(loaded.prompt_format, prompts, generated, nlls)


def _complete_with_vllm(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    sequences: Sequence[list[int]],
    limits: Sequence[int],
    progress: Progress,
) -> list[Completion]:
    """Raises VllmNotUsed, and MachineError if the config requires vLLM, if it does not give the model's answers."""
    assert loaded.vllm is not None
    stop_ids, context = loaded.prompt_format.stop_ids, loaded.context_length
    generated = loaded.vllm.complete(loaded.model, loaded.vllm_adapter, prompts, limits, stop_ids, context, progress)
    loaded.engine = loaded.inference_note = loaded.vllm.description
    tokens = _token_sequences(list(sequences), list(map(len, prompts)))
    with packed_weights.packed_weights(loaded.model):
        nlls = vllm_decoding.reference_losses(loaded.model, tokens)
    return _completions(loaded.prompt_format, prompts, generated, nlls)


def _inference_note(decoding: str, is_merged: bool, has_adapter: bool) -> str | None:
    names = {"graph": "decoding in slots as a CUDA graph", "slots": "decoding in slots"}
    if decoding not in names and not is_merged:
        return None
    adapter = f", adapter {'merged' if is_merged else 'not merged'}" if has_adapter else ""
    return f"{names.get(decoding, 'generate')}{adapter}"


def _complete_in_batches(
    loaded: LoadedModel,
    sequences: list[list[int]],
    prompt_lengths: list[int],
    settings: dict[str, Any],
    limits: Sequence[int],
    progress: Progress,
    seed: int,
) -> list[Completion]:
    """Batches prompts with prompts of the same limit and about the same length, and calls `generate`."""
    remaining = sorted(range(len(sequences)), key=lambda index: (limits[index], prompt_lengths[index], index))
    completions: dict[int, Completion] = {}
    splitter = memory.BatchSplitter("completions", partial(_num_tokens, sequences, prompt_lengths, limits))
    while remaining:
        limit = limits[remaining[0]]
        batch = [index for index in remaining[:MAX_BATCH_SIZE] if limits[index] == limit]
        batch = batch[: max(1, MAX_BATCH_TOKENS // (prompt_lengths[batch[-1]] + limit))]
        remaining = remaining[len(batch) :]
        complete_part = partial(
            _complete_batch, loaded, sequences, prompt_lengths, {**settings, "max_new_tokens": limit}, seed
        )
        for part, completed in splitter.map(complete_part, batch):
            completions.update(zip(part, completed, strict=True))
            progress(len(part))
    return [completions[index] for index in range(len(sequences))]


def _complete_batch(
    loaded: LoadedModel,
    sequences: Sequence[list[int]],
    prompt_lengths: Sequence[int],
    settings: dict[str, Any],
    seed: int,
    indices: Sequence[int],
) -> list[Completion]:
    """The completions of the sequences at `indices`, as one batch."""
    rows, lengths = [sequences[index] for index in indices], [prompt_lengths[index] for index in indices]
    with _seeded(seed, rows) if settings.get("do_sample") else contextlib.nullcontext():
        return _generate_batch(loaded, rows, lengths, settings)


def _num_tokens(
    sequences: Sequence[list[int]], prompt_lengths: Sequence[int], limits: Sequence[int], indices: Sequence[int]
) -> int:
    """The tokens of a batch, padded to the longest: of the prompts, and of the completions or the references."""
    return len(indices) * max(max(len(sequences[index]), prompt_lengths[index] + limits[index]) for index in indices)


def _limits_within_context(
    context_length: int,
    prompts: Sequence[list[int]],
    max_new_tokens: Sequence[int],
    references: Sequence[list[int]] | None,
) -> list[int]:
    """Lowers each limit to what the context leaves: beyond it, models raise an error or generate nonsense."""
    for index, prompt in enumerate(prompts):
        length = len(prompt) + max(1, len(references[index]) if references else 0)
        if length > context_length:
            raise DataError(
                f"prompt {index + 1} of {len(prompts)} has {length:,} tokens with its reference; "
                f"the model's context is {context_length:,} tokens; shorten it"
            )
    return [min(limit, context_length - len(prompt)) for prompt, limit in zip(prompts, max_new_tokens, strict=True)]


@contextlib.contextmanager
def _seeded(seed: int, sequences: Sequence[list[int]]) -> Iterator[None]:
    """Seeds torch from `seed` and the batch, so that a completion does not depend on what was sampled before."""
    with torch.random.fork_rng():
        torch.manual_seed(int(digest(seed, sequences)[:15], 16))
        yield


def _generate_batch(
    loaded: LoadedModel,
    prompts_plus_references: list[list[int]],
    prompt_lengths: list[int],
    settings: dict[str, Any],
) -> list[Completion]:
    sequences = _token_sequences(prompts_plus_references, prompt_lengths)
    nlls: list[float | None] = [None] * len(prompts_plus_references)
    cache = None
    if generation_module.supports_packed_prefill(loaded.model):
        nlls, cache = generation_module.packed_prefill(loaded.model, sequences)
    elif sequences.num_supervised_tokens:
        scored = [index for index, length in enumerate(sequences.supervised_lengths) if length]
        losses = packing.sequence_mean_losses(loaded.model, sequences.select(scored))
        for index, loss in zip(scored, losses, strict=True):
            nlls[index] = loss
    prompts = [ids[:length] for ids, length in zip(prompts_plus_references, prompt_lengths, strict=True)]
    generated = generation_module.generate_from_cache(
        loaded.model, prompts, loaded.prompt_format.stop_ids, settings, cache
    )
    return _completions(loaded.prompt_format, prompts, generated, nlls)


def _token_sequences(prompts_plus_references: list[list[int]], prompt_lengths: list[int]) -> TokenSequences:
    return TokenSequences.supervised_from([np.asarray(ids) for ids in prompts_plus_references], prompt_lengths)


def _completions(
    prompt_format: PromptFormat,
    prompts: Sequence[list[int]],
    generated: Sequence[list[int]],
    nlls: Sequence[float | None],
) -> list[Completion]:
    completions = []
    for prompt, tokens, nll in zip(prompts, generated, nlls, strict=True):
        split, finish_reason = decode_completion(prompt_format, prompt, tokens)
        completions.append(
            Completion(
                split.answer,
                len(tokens),
                finish_reason,
                nll,
                reasoning=split.reasoning,
                reasoning_cut=split.is_unfinished and finish_reason == "length",
                num_reasoning_tokens=split.num_reasoning_tokens,
                tokens=tokens,
            )
        )
    return completions


def decode_completion(
    prompt_format: PromptFormat, prompt: Sequence[int], tokens: Sequence[int]
) -> tuple[SplitCompletion, FinishReason]:
    """Decodes generated `tokens` up to the first stop token. Returns thought and answer, and why the tokens end."""
    end = next((index for index, token in enumerate(tokens) if token in prompt_format.stop_ids), None)
    return prompt_format.split_completion(prompt, tokens[:end]), "length" if end is None else "stop"
