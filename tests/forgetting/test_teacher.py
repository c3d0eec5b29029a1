"""Distillation from a teacher that is not the base."""

import json
from pathlib import Path

import pytest

from pipelines.errors import ModelError
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
