"""Distillation's losses and gradients against their closed form."""

import numpy as np
import pytest
import torch

from pipelines.forgetting.strategies.distill import Distill, DistillSettings
from pipelines.forgetting.teacher import TopK
from pipelines.modeling.kl_divergence import kl_divergence
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.reference_model import ReferenceModel
from tests.forgetting.tiny_lora import base, lora, rows, sgd


def random_logits(seed, tokens=7, vocabulary=40):
    return torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_gradient_is_t_times_the_difference_of_probabilities(temperature):
    teacher, student = random_logits(0), random_logits(1).requires_grad_()
    kl_divergence(teacher, student, temperature).sum().backward()
    expected = temperature * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    torch.testing.assert_close(student.grad, expected.detach(), atol=1e-5, rtol=1e-4)


def test_the_gradient_is_zero_where_student_equals_teacher():
    teacher = random_logits(0)
    student = teacher.clone().requires_grad_()
    loss = kl_divergence(teacher, student)
    loss.sum().backward()
    assert float(loss.detach().abs().max()) < 1e-6 and float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k_has_a_bucket_for_the_tail(k):
    teacher = random_logits(0)
    student = teacher.clone().requires_grad_()
    topk = TopK.from_logits(teacher, k)
    loss = topk.kl_divergence(student)
    loss.sum().backward()
    # With the k tokens renormalized instead, the gradient would not be zero.
    assert float(loss.detach().abs().max()) < 1e-4 and float(student.grad.abs().max()) < 1e-4
    other = random_logits(1).requires_grad_()
    full_kl = kl_divergence(teacher, other).detach()
    assert (topk.kl_divergence(other).detach() <= full_kl + 1e-4).all()
    if k == 40:
        torch.testing.assert_close(topk.kl_divergence(other).detach(), full_kl, atol=1e-3, rtol=1e-3)


def test_the_reference_is_the_model_without_its_adapter(tmp_path):
    moved, data = lora(tmp_path / "m", moved=True).train(), rows()
    expected = supervised_logits(base(tmp_path / "m").eval(), data)[0].detach()
    torch.testing.assert_close(ReferenceModel(moved).logits(data), expected)
    assert moved.training
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in moved.named_parameters())
    assert not torch.allclose(supervised_logits(moved, data)[0], expected, atol=1e-3)


def test_the_reference_without_an_adapter_is_a_frozen_copy(tmp_path):
    model, data = base(tmp_path / "m"), rows()
    reference = ReferenceModel(model)
    expected = supervised_logits(model, data)[0].detach()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05
    torch.testing.assert_close(reference.logits(data), expected)


def test_the_loss_on_task_rows_is_a_mean_over_the_step(tmp_path):
    model, data = lora(tmp_path / "m", moved=True), rows(4)
    distill = Distill(DistillSettings(weight=0.3, apply_to="task"))
    distill.setup(model, sgd(model))
    logits, _ = supervised_logits(model, data)
    distill.begin_step(data)
    expected = 0.3 * kl_divergence(ReferenceModel(model).logits(data), logits).mean()
    torch.testing.assert_close(distill.loss_on_task_rows(data, logits, data.num_supervised_tokens), expected)
    batches = [data[start : start + 2] for start in (0, 2)]
    losses = [
        distill.loss_on_task_rows(batch, supervised_logits(model, batch)[0], data.num_supervised_tokens)
        for batch in batches
    ]
    torch.testing.assert_close(sum(losses), expected)


def test_the_loss_on_task_rows_of_a_teacher_is_its_kl_divergence(tmp_path):
    model, data = lora(tmp_path / "m", moved=True), rows(3)
    teacher = base(tmp_path / "other").eval()
    teacher_logits = supervised_logits(teacher, data)[0].detach()
    teacher_topk = {
        data.key(index): TopK.from_logits(part, 1000)
        for index, part in enumerate(teacher_logits.split(data.supervised_lengths))
    }
    distill = Distill(DistillSettings(weight=1.0, apply_to="task", teacher="x"), teacher_topk)
    distill.setup(model, sgd(model))
    logits, _ = supervised_logits(model, data)
    distill.begin_step(data)
    expected = kl_divergence(teacher_logits, logits).mean().detach()
    loss = distill.loss_on_task_rows(data, logits, data.num_supervised_tokens).detach()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-3)
    assert np.isclose(distill.metrics()["distill on tasks"], float(expected), atol=1e-3)
