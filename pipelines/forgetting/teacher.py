"""Another model as teacher: its predictions on the tasks' rows, once, cut to the likeliest tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from pipelines.config.forgetting import Distill as Settings
from pipelines.console.activity import doing
from pipelines.errors import ModelError
from pipelines.forgetting.distill import TopK
from pipelines.modeling.base_models import find_base_model, load_tokenizer
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.token_sequences import TokenSequences, micro_batches
from pipelines.storage.files import write_tensors

MICRO_BATCH = 8


def check_teacher(settings: Settings, base: Path) -> Path:
    """The teacher's folder. Raises ModelError unless its tokenizer makes the same tokens as the base's."""
    assert settings.teacher is not None
    folder = find_base_model(settings.teacher)
    ours, its = load_tokenizer(base).get_vocab(), load_tokenizer(folder).get_vocab()
    if ours != its:
        token = next((token for token in ours if its.get(token) != ours[token]), None) or next(
            iter(set(its) - set(ours))
        )
        raise ModelError(
            f"pipeline.forgetting.distill.teacher {settings.teacher!r} has another tokenizer than the base (token {token!r} is "
            f"{its.get(token, 'unknown')} there, {ours.get(token, 'unknown')} here); name a model of the same family"
        )
    return folder


def cache_teacher_topk(settings: Settings, teacher: Path, rows: TokenSequences, keep: Path) -> dict[bytes, TopK]:
    """The teacher's distributions at each row's supervised tokens, by the row's `TokenSequences.key`; kept in a file, so
    that a training that goes on does not ask again."""
    if not keep.exists():
        write_tensors(keep, _predict_topk(settings, teacher, rows))
    kept = load_file(keep)
    parts = zip(
        map(rows.key, range(len(rows))),
        kept["tokens"].split(rows.supervised_lengths),
        kept["log_probs"].split(rows.supervised_lengths),
        strict=True,
    )
    return {key: TopK(tokens.long(), log_probs) for key, tokens, log_probs in parts}


@torch.no_grad()
def _predict_topk(settings: Settings, teacher: Path, rows: TokenSequences) -> dict[str, torch.Tensor]:
    parts = []
    with doing("the teacher's predictions on the tasks' rows", len(rows)) as activity:
        model = load_causal_lm(teacher, frozen=True).eval()
        for part in micro_batches(rows, MICRO_BATCH):
            parts.append(TopK.of(supervised_logits(model, part)[0], settings.top_k, settings.temperature))
            activity.advance(len(part))
    tokens, log_probs = zip(*((part.tokens.int().cpu(), part.log_probs.cpu()) for part in parts), strict=True)
    return {"tokens": torch.cat(tokens), "log_probs": torch.cat(log_probs)}
