"""Choosing the next token of one sequence from its logits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import torch

from pipelines.inference.requests import GenerationRequest, TokenLogprob
from pipelines.modeling.device_copy import to_fp64

TOP_P_CANDIDATES = 1024
"""Most likely tokens that are sorted for `top_p`; the whole vocabulary only if their probability does not reach it."""


class Sampler:
    """The sampling of one request: its settings and its own random numbers.

    A token is drawn by inversion of the cumulative distribution, with one number of a generator that only this request
    uses. What else is decoded in the same batch therefore does not change it, except through rounding of the logits.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        seed = secrets.randbits(63) if request.seed is None else request.seed
        self.generator = torch.Generator().manual_seed(seed % 2**63)

    @property
    def is_greedy(self) -> bool:
        return self.request.temperature <= 0 or self.request.top_k == 1

    @property
    def needs_logits(self) -> bool:
        """Whether more than the most likely token is needed."""
        request = self.request
        return not self.is_greedy or request.num_logprobs is not None or request.repetition_penalty != 1

    def choose(self, logits: torch.Tensor, previous: Sequence[int]) -> tuple[int, TokenLogprob | None]:
        """The next token, and its log probability if the request wants it.

        logits: [vocabulary]; previous: the tokens of the prompt and those generated so far.
        """
        logits = logits.float()
        scores = self._penalized(logits, previous)
        token = int(scores.argmax()) if self.is_greedy else self._draw(scores)
        if self.request.num_logprobs is None:
            return token, None
        return token, token_logprob(logits, token, self.request.num_logprobs)

    def _penalized(self, logits: torch.Tensor, previous: Sequence[int]) -> torch.Tensor:
        penalty = self.request.repetition_penalty
        if penalty == 1:
            return logits
        seen = torch.tensor(sorted(set(previous)), device=logits.device)
        values = logits[seen]
        return logits.index_copy(0, seen, torch.where(values < 0, values * penalty, values / penalty))

    def _draw(self, scores: torch.Tensor) -> int:
        """A token by temperature, top_k and top_p, in this order, as transformers applies them."""
        request = self.request
        scores = scores / request.temperature
        candidates: torch.Tensor | None = None
        if request.top_k:
            scores, candidates = scores.topk(min(request.top_k, len(scores)))
        probabilities = to_fp64(scores).softmax(-1)
        if candidates is not None:
            candidates = candidates.to(probabilities.device)
        if request.top_p < 1:
            probabilities, kept = _nucleus(probabilities, request.top_p)
            candidates = kept if candidates is None else candidates[kept]
        cumulative = probabilities.cumsum(-1).cpu()
        # In (0, total]: a token without probability is never drawn.
        threshold = (1 - torch.rand(1, generator=self.generator, dtype=torch.float64)) * cumulative[-1]
        index = int(torch.searchsorted(cumulative, threshold).clamp(max=len(cumulative) - 1))
        return index if candidates is None else int(candidates[index])


def _nucleus(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest set of most likely tokens whose probability reaches `top_p`: probabilities and indices."""
    count = min(TOP_P_CANDIDATES, len(probabilities))
    values, indices = probabilities.topk(count)
    cumulative = values.cumsum(-1)
    if count < len(probabilities) and cumulative[-1] < top_p:
        values, indices = probabilities.sort(descending=True)
        cumulative = values.cumsum(-1)
    # A token is kept if those before it do not reach top_p; the first one always.
    kept = int((cumulative - values < top_p).sum().clamp(min=1))
    return values[:kept], indices[:kept]


def token_logprob(logits: torch.Tensor, token: int, num_alternatives: int) -> TokenLogprob:
    """The log probabilities of `token` and of the most likely tokens, from fp32 logits [vocabulary]."""
    normalizer = logits.logsumexp(-1)
    top: tuple[tuple[int, float], ...] = ()
    if num_alternatives:
        values, indices = logits.topk(min(num_alternatives, len(logits)))
        top = tuple(zip(indices.tolist(), (values - normalizer).tolist(), strict=True))
    return TokenLogprob(token, float(logits[token] - normalizer), top)
