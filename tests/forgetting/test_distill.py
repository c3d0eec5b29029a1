"""Distillation's gradients against their closed form."""

import numpy as np
import pytest
import torch

from pipelines.config.forgetting import Distill as Settings
from pipelines.forgetting.distill import Distill, TopK
from pipelines.modeling.kl_divergence import kl_divergence
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.reference_model import ReferenceModel
from tests.forgetting.tiny_lora import base, lora, rows, sgd


def logits(seed, tokens=7, vocabulary=40):
    return torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_gradient_is_t_times_the_difference_of_probabilities(temperature):
    teacher, student = logits(0), logits(1).requires_grad_()
    kl_divergence(teacher, student, temperature).sum().backward()
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    torch.testing.assert_close(student.grad, expected.detach(), atol=1e-5, rtol=1e-4)


def test_a_student_that_is_its_teacher_is_left_alone():
    teacher = logits(0)
    student = teacher.clone().requires_grad_()
    loss = kl_divergence(teacher, student)
    loss.sum().backward()
    assert float(loss.detach().abs().max()) < 1e-6 and float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("k", [1, 5, 40])
def test_a_cut_teacher_has_a_bucket_for_the_rest(k):
    teacher = logits(0)
    student = teacher.clone().requires_grad_()
    cut = TopK.of(teacher, k)
    loss = cut.kl_divergence(student)
    loss.sum().backward()
    assert float(loss.detach().abs().max()) < 1e-4 and float(student.grad.abs().max()) < 1e-4
    # Renormalising the k tokens instead would not have been at rest.
    other = logits(1).requires_grad_()
    whole = kl_divergence(teacher, other).detach()
    assert (cut.kl_divergence(other).detach() <= whole + 1e-4).all()
    if k == 40:
        torch.testing.assert_close(cut.kl_divergence(other).detach(), whole, atol=1e-3, rtol=1e-3)


def test_the_base_is_the_model_with_its_adapter_off(tmp_path):
    moved, data = lora(tmp_path / "m", moved=True).train(), rows()
    expected = supervised_logits(base(tmp_path / "m").eval(), data)[0].detach()
    found = ReferenceModel(moved).logits(data)
    torch.testing.assert_close(found, expected)
    assert moved.training and all(
        weight.requires_grad == ("lora_" in name) for name, weight in moved.named_parameters()
    )
    assert not torch.allclose(supervised_logits(moved, data)[0], expected, atol=1e-3)


def test_without_an_adapter_it_is_a_frozen_copy(tmp_path):
    model, data = base(tmp_path / "m"), rows()
    kept = ReferenceModel(model)
    expected = supervised_logits(model, data)[0].detach()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05
    torch.testing.assert_close(kept.logits(data), expected)


def test_on_the_tasks_rows_the_term_is_the_mean_over_the_step(tmp_path):
    model, data = lora(tmp_path / "m", moved=True), rows(4)
    distill = Distill(Settings(weight=0.3, apply_to="task"))
    distill.setup(model, sgd(model))
    found, _ = supervised_logits(model, data)
    distill.sample_rows(data)
    whole = distill.task_loss(data, found, data.supervised_tokens)
    expected = 0.3 * kl_divergence(ReferenceModel(model).logits(data), found).mean()
    torch.testing.assert_close(whole, expected)
    parts = [
        distill.task_loss(data[n : n + 2], supervised_logits(model, data[n : n + 2])[0], data.supervised_tokens)
        for n in (0, 2)
    ]
    torch.testing.assert_close(sum(parts), expected)


def test_another_teacher_teaches_row_by_row(tmp_path):
    model, data = lora(tmp_path / "m", moved=True), rows(3)
    teacher = base(tmp_path / "other").eval()
    told = supervised_logits(teacher, data)[0].detach()
    teacher_topk = {
        data.key(index): TopK.of(part, 1000) for index, part in enumerate(told.split(data.supervised_lengths))
    }
    distill = Distill(Settings(weight=1.0, apply_to="task", teacher="x"), teacher_topk)
    distill.setup(model, sgd(model))
    found, _ = supervised_logits(model, data)
    distill.sample_rows(data)
    expected = kl_divergence(told, found).mean()
    torch.testing.assert_close(distill.task_loss(data, found, data.supervised_tokens), expected, atol=1e-4, rtol=1e-3)
    assert np.isclose(distill.metrics()["distill on tasks"], float(expected), atol=1e-3)
