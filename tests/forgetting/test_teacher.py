"""Distillation from a teacher that is not the base."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.errors import ModelError
from pipelines.forgetting.teacher import cache_teacher_topk
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.token_sequences import TokenSequences
from tests.jobs import run
from tests.tiny import make_model

pytestmark = pytest.mark.ludwig

DISTILL = "pipeline.forgetting.strategy=distill"


def test_a_teacher_with_the_same_tokenizer_is_a_loss_in_every_step(project_with_evals):
    make_model(Path("teacher"), seed=5)
    run_with_teacher = run("one", DISTILL, "pipeline.forgetting.distill={apply_to: task, teacher: ./teacher, top_k: 8}")
    history = json.loads(run_with_teacher.path("model", "training.json").read_text())["forgetting"]
    assert all(entry["distill on tasks"] > 0 for entry in history)


def test_a_teacher_with_another_tokenizer_is_refused(project_with_evals):
    make_model(Path("teacher"), "sentencepiece")
    with pytest.raises(ModelError, match="has another tokenizer than the base"):
        run("two", DISTILL, "pipeline.forgetting.distill={apply_to: task, teacher: ./teacher}")


def test_equal_tokens_with_other_spans_have_predictions_of_their_own(tmp_path):
    tokens = np.arange(5, 15, dtype=np.int32)
    sequences = TokenSequences([tokens, tokens], [[(2, 4), (7, 8)], [(5, 9)]])
    folder = make_model(tmp_path / "teacher")
    topk = cache_teacher_topk(folder, sequences, 3, 1.0, tmp_path / "topk.safetensors")
    logits, _ = supervised_logits(load_causal_lm(folder, allow_half_precision=True).eval(), sequences)
    for index, expected in enumerate(logits.detach().split([3, 4])):
        predicted = topk[sequences.key(index)].tokens
        assert torch.equal(predicted, expected.topk(3).indices)
