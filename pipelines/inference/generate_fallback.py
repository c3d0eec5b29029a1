"""Decoding by transformers' `generate`, for models that slots do not serve: batches that begin and end together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from pipelines.inference.sequence import ActiveSequence


class _ChooseTokens(LogitsProcessor):
    """Chooses the token of every sequence by its own sampling, and leaves `generate` no other."""

    def __init__(self, sequences: Sequence[ActiveSequence]) -> None:
        self.sequences = sequences

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        chosen = torch.full_like(scores, float("-inf"))
        for index, sequence in enumerate(self.sequences):
            token = 0
            if not sequence.has_ended:
                token, logprob = sequence.choose(scores[index])
                sequence.append(token, logprob)
            chosen[index, token] = 0
        return chosen


class _AllEnded(StoppingCriteria):
    """Ends `generate` for the sequences that have ended."""

    def __init__(self, sequences: Sequence[ActiveSequence]) -> None:
        self.sequences = sequences

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        return torch.tensor([sequence.has_ended for sequence in self.sequences], device=input_ids.device)


def generate_batch(model: torch.nn.Module, sequences: Sequence[ActiveSequence]) -> None:
    """Decodes sequences to their ends in one padded batch. They get their tokens as they are generated."""
    device = next(model.parameters()).device
    width = max(len(sequence.prompt) for sequence in sequences)
    filler = sequences[0].prompt_format.stop_ids[0]  # masked, so any token will do
    padding = [width - len(sequence.prompt) for sequence in sequences]
    ids = [[filler] * pad + list(sequence.prompt) for pad, sequence in zip(padding, sequences, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in padding]
    config = GenerationConfig(
        max_new_tokens=max(sequence.limit for sequence in sequences), do_sample=False, pad_token_id=filler
    )
    model.generate(  # type: ignore[operator]
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        generation_config=config,
        logits_processor=LogitsProcessorList([_ChooseTokens(sequences)]),
        stopping_criteria=StoppingCriteriaList([_AllEnded(sequences)]),
    )
