"""A teacher other than the base: its predictions on the tasks' rows, computed once and cut to the top k tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from pipelines.console.activity import track_activity
from pipelines.errors import ModelError
from pipelines.modeling.base_models import ensure_base_model, load_tokenizer
from pipelines.modeling.device_copy import tensor_to_device
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.memory import split_tokens
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.token_sequences import TokenSequences, micro_batches
from pipelines.storage.files import write_tensors

MICRO_BATCH = 8


@dataclass(frozen=True)
class TopK:
    """The k most likely tokens of a teacher at each position, the most likely first.

    `tokens` int64 [positions, k]; `log_probs` fp32 [positions, k].
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor

    @classmethod
    def concatenate(cls, parts: Sequence[TopK]) -> TopK:
        """Returns the positions of all `parts`, in their order."""
        return cls(torch.cat([part.tokens for part in parts]), torch.cat([part.log_probs for part in parts]))

    def to(self, device: torch.device) -> TopK:
        """Returns the same on `device`."""
        if self.tokens.device == device:
            return self
        return TopK(tensor_to_device(self.tokens, device), tensor_to_device(self.log_probs, device))

    @classmethod
    def from_logits(cls, logits: torch.Tensor, k: int, temperature: float = 1.0) -> TopK:
        """Returns the top k of `logits` [positions, vocabulary]."""
        log_probs, tokens = F.log_softmax(logits.float() / temperature, dim=-1).topk(min(k, logits.shape[-1]), dim=-1)
        return cls(tokens, log_probs)

    def kl_divergence(self, student_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """Returns T²·KL(teacher ‖ student) in nats [positions], over the k tokens and one bucket for all others.

        Without that bucket the gradient would not be zero for a student that equals its teacher. Computed on the device
        of `student_logits` [positions, vocabulary].
        """
        teacher = self.to(student_logits.device)
        student_log_probs = F.log_softmax(student_logits.float() / temperature, dim=-1).gather(-1, teacher.tokens)
        kl = (teacher.log_probs.exp() * (teacher.log_probs - student_log_probs)).sum(dim=-1)
        teacher_tail, student_tail = _tail_log_prob(teacher.log_probs), _tail_log_prob(student_log_probs)
        return temperature**2 * (kl + teacher_tail.exp() * (teacher_tail - student_tail))


def _tail_log_prob(log_probs: torch.Tensor) -> torch.Tensor:
    """Returns log(1 − Σ p), bounded away from log 0 by the precision of fp32."""
    return torch.log1p(-log_probs.exp().sum(dim=-1).clamp(max=1 - 1e-6))


def find_teacher(name: str, base: Path) -> Path:
    """Returns the folder of the teacher. Raises ModelError unless its vocabulary is that of the base."""
    folder = ensure_base_model(name)
    base_vocabulary, teacher_vocabulary = load_tokenizer(base).get_vocab(), load_tokenizer(folder).get_vocab()
    if base_vocabulary != teacher_vocabulary:
        differing = (token for token, index in base_vocabulary.items() if teacher_vocabulary.get(token) != index)
        token = next(differing, None) or next(iter(set(teacher_vocabulary) - set(base_vocabulary)))
        raise ModelError(
            f"pipeline.forgetting.distill.teacher {name!r} has another tokenizer than the base (token {token!r} is "
            f"{teacher_vocabulary.get(token, 'unknown')} there, {base_vocabulary.get(token, 'unknown')} here); name a "
            f"model of the same family"
        )
    return folder


def cache_teacher_topk(
    teacher: Path, rows: TokenSequences, k: int, temperature: float, cache: Path
) -> dict[bytes, TopK]:
    """Returns the teacher's top k at the supervised tokens of each sequence, by its `TokenSequences.key`.

    They are read from the file `cache`, which is computed first if it is missing, so that a resumed training does
    not load the teacher again.
    """
    if not cache.exists():
        write_tensors(cache, _predict_topk(teacher, rows, k, temperature))
    tensors = load_file(cache)
    parts = zip(
        map(rows.key, range(len(rows))),
        tensors["tokens"].split(rows.supervised_lengths),
        tensors["log_probs"].split(rows.supervised_lengths),
        strict=True,
    )
    return {key: TopK(tokens.long(), log_probs) for key, tokens, log_probs in parts}


@torch.no_grad()
def _predict_topk(teacher: Path, rows: TokenSequences, k: int, temperature: float) -> dict[str, torch.Tensor]:
    predictions = []
    with track_activity("the teacher's predictions on the tasks' rows", len(rows)) as activity:
        model = load_causal_lm(teacher, allow_half_precision=True).eval()
        splitter = split_tokens("the teacher's predictions")

        def predict(batch: TokenSequences) -> TopK:
            topk = TopK.from_logits(supervised_logits(model, batch)[0], k, temperature)
            return TopK(topk.tokens.int().cpu(), topk.log_probs.cpu())  # those of all rows need not fit on a GPU

        for batch in micro_batches(rows, MICRO_BATCH):
            for part, topk in splitter.map(predict, batch):
                predictions.append(topk)
                activity.advance(len(part))
    return {
        "tokens": torch.cat([prediction.tokens for prediction in predictions]),
        "log_probs": torch.cat([prediction.log_probs for prediction in predictions]),
    }
